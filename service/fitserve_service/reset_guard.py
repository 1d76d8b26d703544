"""Slows connections down that begin calls and reset them faster than the loop can see them (CVE-2023-44487).

A stream that was reset does not count against the limit of streams, but its call holds memory, and everybody waits
behind it until the loop has seen it. Three bounds stand against that:

- grpcio refuses calls of a connection that has `transport._HEADROOM` of them over and unseen, where it knows how to.
- Connections with most unfinished calls are held back where all have many more than may be open.
- No new connections are taken while many calls or connections wait to be seen: who hangs up after some thousand calls
  has no connection that could be held, and opens another.

Nothing is closed, so a client that is taken for an abuser only waits; an abuser whose connection was closed would open
another. Without headroom (grpcio before 1.82) the first bound is off: it costs well-behaved clients at the limit calls,
because one that is answered still holds memory when the next arrives.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from fitserve_service.connections import Connection, Peer, PortConnections, can_be_held, next_descriptor

_LOOK_S: Final = 0.025

_IDLE_SHARE: Final = 0.2
"""Where the process uses less of a processor than this, no flood arrives."""

_SIGN_COUNT: Final = 250
"""Calls that grpcio took and the loop has not seen since the last look: fewer are not worth asking each connection."""

MOST_SURPLUS: Final = 512
"""Unfinished calls beyond the limits of their connections, over all of them; some 8 MiB. A well-behaved one has few:
those that it cancelled since the loop's last turn."""

_MOST_UNSEEN: Final = 1_024
"""Calls that the loop has not seen, of whatever connections: beyond, no new connections are taken. Who hangs up after
each few thousand calls is bounded by that alone."""

_MOST_OPENED: Final = 256
"""Connections that grpcio has taken and not dealt with: the calls of others wait behind them."""

_FEW: Final = 64
"""New connections are taken again where no more calls and connections than this wait."""

_CALL_LOOKS: Final = 80
"""Two seconds: a loop that was busy has seen all calls at some time in it."""

_OPENED_LOOKS: Final = 8
"""A fifth of a second: those who only come at the same time as many others, and stay, wait no longer for it."""

_LOOK_LIMIT_S: Final = 0.004
"""Time to look at connections, at once: the loop waits meanwhile."""

_REST_FACTOR: Final = 9.0
"""Time between two looks at connections, as a multiple of the first one's: channelz becomes slow where many come."""

_HOLD_S: Final = 1.0
"""Longest hold: calls that are over for their caller and not here, as in a long run, are no flood by themselves."""

_LOG_S: Final = 10.0

_log = logging.getLogger(__name__)


class Backlog:
    """How far a number is above the least of its latest ones: what waits, where some of what is counted never ends.

    Args:
        look_count: Numbers that are kept.
    """

    def __init__(self, look_count: int) -> None:
        self._found: deque[int] = deque(maxlen=look_count)

    def above_least(self, found: int) -> int:
        """Takes a number."""
        self._found.append(found)
        return found - min(self._found)


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
        self._calls = Backlog(_CALL_LOOKS)
        self._opened = Backlog(_OPENED_LOOKS)
        self._is_closed = False
        self._looked_at = 0
        self._not_before_s = 0.0
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
        self._let_go(self._held_since_s.keys())
        self._connections.let_new()

    def _has_sign(self) -> bool:
        """Closes the port to new connections or opens it, and asks whether a look at each is worth its time."""
        used_s = time.process_time()
        is_idle, self._used_before_s = used_s - self._used_before_s < _IDLE_SHARE * _LOOK_S, used_s
        if is_idle and not self._is_closed and not self._held_since_s:
            return False
        unseen = self._connections.begun_count() - self._seen_count()
        calls, opened = self._calls.above_least(unseen), self._opened.above_least(next_descriptor())
        self._close_or_open(calls, opened)
        return bool(self._held_since_s) or calls >= _SIGN_COUNT

    def _close_or_open(self, calls: int, opened: int) -> None:
        """Takes new connections or not, by the calls that the loop has not seen and the connections grpcio has not."""
        if not self._is_closed and (calls > _MOST_UNSEEN or opened > _MOST_OPENED):
            self._is_closed = True
            self._connections.hold_new()
        elif self._is_closed and calls <= _FEW and opened <= _FEW:
            self._is_closed = False
            self._connections.let_new()

    def _look(self) -> None:
        begin_s = time.monotonic()
        if begin_s < self._not_before_s:
            return
        found = list(self._next_ones(begin_s + _LOOK_LIMIT_S))
        self._let_go({each.peer for each in found if each.unfinished_count <= self._max_streams})
        abusers = abusing(found, self._max_streams, MOST_SURPLUS)
        self._connections.hold(abusers.keys() - self._held_since_s.keys())
        self._held_since_s = dict.fromkeys(abusers, begin_s) | self._held_since_s
        if abusers and begin_s - self._logged_s > _LOG_S:
            self._logged_s = begin_s
            (host, port), count = max(abusers.items(), key=lambda item: item[1])
            _log.warning(
                "connections: expected at most %d calls at once on each, got %d unfinished ones from %s port %d, begun "
                "and reset; it and %d others are held back until theirs are over",
                *(self._max_streams, count, host, port, len(abusers) - 1),
            )
        end_s = time.monotonic()
        self._not_before_s = end_s + (end_s - begin_s) * _REST_FACTOR

    def _next_ones(self, until_s: float) -> Iterator[Connection]:
        """Yields as many connections as there is time for, from where the last look has ended."""
        after, self._looked_at = self._looked_at, 0
        for connection in self._connections.open_ones(after):
            yield connection
            if time.monotonic() > until_s:
                self._looked_at = connection.number
                return

    def _let_go(self, well_behaved: Collection[Peer]) -> None:
        """Reads again from held connections that have no more calls than may be open, and from those held for long."""
        latest_s = time.monotonic() - _HOLD_S
        over = {peer for peer, since_s in self._held_since_s.items() if peer in well_behaved or since_s < latest_s}
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
