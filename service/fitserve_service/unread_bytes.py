"""Bounds the answers that callers have not taken yet, in bytes: each costs memory for as long as its caller likes.

They are counted over all connections and on each. Beyond a bound the answer that has waited longest without progress is
cut off: of the connection that has too much, or of the one that has most. An answer to a caller who reads goes out at
once, so it is never among those.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from fitserve_service.errors import Reason, ServiceError

_CONNECTION_SHARE: Final = 0.5
"""Share of the bytes over all connections that one connection may hold."""


class UnreadBytes:
    """Bytes of answers by connection and holder, each connection's longest unmoved first. Lives on the loop thread.

    Args:
        most: Bytes over all connections; each connection may hold half of them.
    """

    def __init__(self, most: int) -> None:
        self.total = 0
        self._most = most
        self._share = int(most * _CONNECTION_SHARE)
        self._sizes: dict[str, dict[Hashable, int]] = {}
        self._sums: dict[str, int] = {}
        self._cuts: dict[Hashable, Callable[[], None]] = {}

    def has_room(self, connection: str, size: int) -> bool:
        """Checks whether a connection may hold further bytes; the only answer there is always fits."""
        held = self._sums.get(connection, 0)
        return not self.total or (self.total + size <= self._most and (not held or held + size <= self._share))

    def add(self, holder: Hashable, connection: str, size: int, cut: Callable[[], None] | None = None) -> bool:
        """Counts bytes that a holder begins to send.

        Args:
            holder: A call.
            connection: Its peer.
            size: Bytes of the answer.
            cut: Ends the call and forgets its answers; called at most once, not for the holder that is added. None: it
                is never cut off.

        Returns:
            False where this holder alone has more than a connection may, in several answers; nothing is counted then.
        """
        held = self._sizes.get(connection, {}).get(holder, 0)
        if held and held + size > self._share:
            return False
        self._sizes.setdefault(connection, {})[holder] = held + size
        self._sums[connection] = self._sums.get(connection, 0) + size
        self.total += size
        if cut is not None:
            self._cuts[holder] = cut
        while (victim := self._victim(holder, connection)) is not None:
            self._cut(*victim)
        return True

    def remove(self, holder: Hashable, connection: str, size: int | None = None) -> None:
        """Forgets bytes that are out, and takes their holder for the connection's latest; unknown holders are ignored.

        Args:
            holder: The call.
            connection: Its peer.
            size: Bytes that are out; None: the call is over.
        """
        sizes = self._sizes.get(connection, {})
        held = sizes.pop(holder, None)
        if held is None:
            return
        gone = held if size is None else min(size, held)
        self.total -= gone
        self._sums[connection] -= gone
        if held > gone:
            sizes[holder] = held - gone
        else:
            self._cuts.pop(holder, None)
        if not sizes:
            del self._sizes[connection], self._sums[connection]

    def _victim(self, added: Hashable, connection: str) -> tuple[Hashable, str] | None:
        """Picks the holder to cut off; None where the bounds hold, or nobody but the one that was added can be."""
        over = [connection] if self._sums[connection] > self._share else []
        if self.total > self._most:
            over += sorted(self._sums, key=self._sums.__getitem__, reverse=True)
        for each in over:
            for holder in self._sizes[each]:
                if holder is not added and holder in self._cuts:
                    return holder, each
        return None

    def _cut(self, holder: Hashable, connection: str) -> None:
        cut = self._cuts[holder]
        self.remove(holder, connection)
        cut()


def unread_text() -> str:
    """Names why an answer was cut off."""
    return "answer: expected to be read before others needed its memory (the server's --max-unread-bytes)"


def unread_error() -> ServiceError:
    """Makes the error of an answer that there is no room to keep until it is read."""
    text = "answer: expected room for it beside those that are not read yet (the server's --max-unread-bytes), got none"
    return ServiceError(Reason.QUOTA, f"{text}; read the earlier ones first")
