"""Slows connections down that begin calls and reset them faster than the loop can see them (CVE-2023-44487).

A stream that was reset does not count against the limit of streams, but its call holds memory, and everybody waits
behind it until the loop has seen it. grpcio's own defence refuses streams where more calls than the limit hold memory.
A well-behaved client at the limit loses calls by that: one that is answered still holds memory when the next arrives.
So that defence is off, and this one holds connections back that have what only abuse has: many more unfinished calls
than may be open. Nothing is refused and nothing closed, so a client that is taken for an abuser only waits; an abuser
whose connection was closed would open another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from fitserve_service.connections import Connection, Peer, PortConnections, can_be_held

_LOOK_S: Final = 0.025

_IDLE_SHARE: Final = 0.2
"""Where the process uses less of a processor than this, no flood arrives."""

_SIGN_COUNT: Final = 500
"""Calls that grpcio took and the loop has not seen since the last look: fewer are not worth asking each connection."""

MOST_SURPLUS: Final = 1_024
"""Unfinished calls beyond the limits of their connections, over all of them; some 10 MiB. A well-behaved one has few:
those that it cancelled since the loop's last turn."""

_HOLD_S: Final = 1.0
"""Longest hold: calls that are over for their caller and not here, as in a long run, are no flood by themselves."""

_LOG_S: Final = 10.0

_log = logging.getLogger(__name__)


class ResetGuard:
    """A thread that looks after the connections of one port until `stop`.

    Args:
        port: TCP port of the server.
        max_streams: Calls that a connection may have open.
        seen_count: Returns the number of calls that the loop was handed, from any thread.
    """

    def __init__(self, port: int, max_streams: int, seen_count: Callable[[], int]) -> None:
        self._connections = PortConnections(port)
        self._max_streams = max_streams
        self._seen_count = seen_count
        self._unseen_before = 0
        self._used_before_s = 0.0
        self._logged_s = -_LOG_S
        self._held_since_s: dict[Peer, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reset-guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and lets everybody go."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            try:
                if self._has_sign():
                    self._look()
            except Exception:
                _log.exception("reset guard: cannot look at the connections; it tries again")
        self._let_go(())

    def _has_sign(self) -> bool:
        """Asks whether a look at each connection is worth its time."""
        used_s = time.process_time()
        is_idle, self._used_before_s = used_s - self._used_before_s < _IDLE_SHARE * _LOOK_S, used_s
        if self._held_since_s:
            return True
        if is_idle:
            return False
        unseen = self._connections.begun_count() - self._seen_count()
        self._unseen_before = min(self._unseen_before, unseen)
        return unseen - self._unseen_before >= _SIGN_COUNT

    def _look(self) -> None:
        found = list(self._connections.open_ones())
        self._unseen_before = self._connections.begun_count() - self._seen_count()
        self._let_go({each.peer for each in found if each.unfinished_count > self._max_streams})
        abusers = abusing(found, self._max_streams, MOST_SURPLUS)
        now = time.monotonic()
        self._connections.hold(abusers.keys() - self._held_since_s.keys())
        self._held_since_s = dict.fromkeys(abusers, now) | self._held_since_s
        if abusers and now - self._logged_s > _LOG_S:
            self._logged_s = now
            (host, port), count = max(abusers.items(), key=lambda item: item[1])
            _log.warning(
                "connections: expected at most %d calls at once on each, got %d unfinished ones from %s port %d, begun "
                "and reset; it and %d others are held back until theirs are over",
                *(self._max_streams, count, host, port, len(abusers) - 1),
            )

    def _let_go(self, beyond: Collection[Peer]) -> None:
        """Reads again from held connections, but those that still have more calls than may be open."""
        latest_s = time.monotonic() - _HOLD_S
        over = {peer for peer, since_s in self._held_since_s.items() if peer not in beyond or since_s < latest_s}
        self._connections.let_go(over)
        for peer in over:
            del self._held_since_s[peer]


@contextmanager
def guarding(port: int, max_streams: int, seen_count: Callable[[], int]) -> Iterator[None]:
    """Guards a port until the block ends; where connections cannot be held, grpcio's own defence is on instead."""
    guard = ResetGuard(port, max_streams, seen_count) if can_be_held() else None
    try:
        yield
    finally:
        if guard is not None:
            guard.stop()


def abusing(connections: Iterable[Connection], max_streams: int, most_surplus: int) -> dict[Peer, int]:
    """Chooses the connections to hold: those with most unfinished calls, until the others are within the bound.

    Args:
        connections: All that are open.
        max_streams: Calls that a connection may have open; what it has beyond is its surplus.
        most_surplus: Surplus over all connections that is borne.

    Returns:
        Their peers, with their unfinished calls.
    """
    beyond = sorted((each for each in connections if each.unfinished_count > max_streams), key=lambda each: each[1])
    surplus = sum(each.unfinished_count - max_streams for each in beyond)
    chosen = {}
    while surplus > most_surplus:
        worst = beyond.pop()
        surplus -= worst.unfinished_count - max_streams
        chosen[worst.peer] = worst.unfinished_count
    return chosen
