"""Calls whose message has not come yet: each costs memory for as long as its caller likes, so they are bounded.

Beyond the bound the one that has waited longest is given up, never the one that has just come: who stalls thousands of
calls loses the own ones, and a caller who sends what it began is never among the oldest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from fitserve_service.calls import Loop
from fitserve_service.errors import Reason, ServiceError

_LOOK_S: Final = 1.0


class WaitingCall(Protocol):
    """A call that can be ended."""

    def fail(self, error: ServiceError) -> None:
        """Ends it."""
        ...


class WaitingCalls:
    """The calls that wait for a message, oldest first. Lives on the loop thread.

    Args:
        loop: Looks for late ones as long as there are any.
        most: Waiting calls, over all connections.
        limit_s: How long one may wait.
        clock: Monotonic seconds.
    """

    def __init__(self, loop: Loop, most: int, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._most = most
        self._limit_s = limit_s
        self._clock = clock
        self._since_s: dict[WaitingCall, float] = {}
        self._is_looking = False

    def add(self, call: WaitingCall) -> None:
        """Takes a call that begins to wait; the oldest is given up where there are too many."""
        self._since_s[call] = self._clock()
        if len(self._since_s) > self._most:
            text = f"message: expected before {self._most} other calls began to wait for theirs, got none yet"
            self._give_up(next(iter(self._since_s)), ServiceError(Reason.QUEUE_FULL, text))
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_later(_LOOK_S, self._look)

    def remove(self, call: WaitingCall) -> None:
        """Forgets a call: its message has come, or it is over."""
        self._since_s.pop(call, None)

    def _look(self) -> None:
        self._is_looking = bool(self._since_s)
        latest_s = self._clock() - self._limit_s
        while self._since_s and (oldest := next(iter(self._since_s.items())))[1] <= latest_s:
            text = f"message: expected within {self._limit_s:g} s of the call's begin, got none"
            self._give_up(oldest[0], ServiceError(Reason.DEADLINE_PASSED, text))
        if self._is_looking:
            self._loop.call_later(_LOOK_S, self._look)

    def _give_up(self, call: WaitingCall, error: ServiceError) -> None:
        self.remove(call)
        call.fail(error)
