"""Unary answers of `fast` that their callers have not taken yet: small ones are bounded by count, others by bytes.

Beyond the bound the call whose answer has lain longest is cut off. An answer to a caller who reads goes out at once, so
that it is never among the oldest, whatever others do.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fitserve_service import completion_queue as core
from fitserve_service.unread_bytes import UnreadBytes, unread_text

RESOURCE_EXHAUSTED: Final = 8
"""Source: grpc/doc/statuscodes.md."""

SMALL_BYTES: Final = 4096
"""Answers below this are bounded by their count, which costs the hot path less."""


class UnreadAnswers:
    """The calls of `fast` that are answered and not over, oldest first. Lives on the loop thread.

    Args:
        most: Calls with small answers, over all connections.
        most_bytes: Bytes of other answers, over all connections.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._calls: dict[core.CoreCall, None] = {}
        self.bytes = UnreadBytes(most_bytes)

    def add(self, call: core.CoreCall, size: int) -> core.Tag:
        """Takes a call whose answer is on its way; the oldest is cut off where there are too many.

        Args:
            call: The call.
            size: Bytes of its answer.

        Returns:
            What is to run when the answer is out, or the call is over.
        """
        if size >= SMALL_BYTES:
            connection = core.peer_of(call)
            self.bytes.add(call, connection, size, partial(core.abort, call, RESOURCE_EXHAUSTED, unread_text()))
            return lambda _: self.bytes.remove(call, connection)
        self._calls[call] = None
        if len(self._calls) > self._most:
            oldest = next(iter(self._calls))
            del self._calls[oldest]
            core.abort(oldest, RESOURCE_EXHAUSTED, f"answer: expected to be read before {self._most} later ones")
        # Nothing of ours runs for it: the event is what `pop` would give where the call is not there any more.
        return partial(self._calls.pop, call)
