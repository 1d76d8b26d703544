"""Answers that their callers have not taken yet: each costs memory as long as its caller likes, so they are bounded.

Beyond the bound the call whose answer has lain longest is cut off. An answer to a caller who reads goes out at once, so
that it is never among the oldest, whatever others do.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fitserve_service import completion_queue as core

_RESOURCE_EXHAUSTED: Final = 8
"""Source: grpc/doc/statuscodes.md."""


class UnreadAnswers:
    """The calls that are answered and not over, oldest first. Lives on the loop thread.

    Args:
        most: Such calls, over all connections.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._calls: dict[core.CoreCall, Any] = {}

    def add(self, call: core.CoreCall) -> core.Tag:
        """Takes a call whose answer is on its way; the oldest is cut off where there are too many.

        Returns:
            What is to run when the answer is out, or the call is over.
        """
        self._calls[call] = None
        if len(self._calls) > self._most:
            oldest = next(iter(self._calls))
            del self._calls[oldest]
            core.abort(oldest, _RESOURCE_EXHAUSTED, f"answer: expected to be read before {self._most} later ones")
        # Nothing of ours runs for it: the event is what `pop` would give where the call is not there any more.
        return partial(self._calls.pop, call)
