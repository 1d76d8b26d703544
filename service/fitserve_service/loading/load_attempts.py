"""Remembers the loads that failed, and when each is worth another try: where a file changed, later, or never.

Thread-safe: loads end on their own threads. The clocks are the caller's.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from fitserve_service.loading.load_errors import LoadError, ShortageError

Name: TypeAlias = tuple[str, int]
"""A model and the number of a version."""

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0
"""Waits double from the first to the longest, give or take a fifth, so that many versions do not try at once."""

_TIMES_ITS_LENGTH: Final = 4.0
"""An attempt that took long is not made again before so many times as long have passed: it costs the others."""

_JITTER: Final = 0.2

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Attempt:
    """The last attempt to load a version.

    Args:
        grounds: What its outcome depends on.
        begun_s: When it began.
        reason: Why it failed; empty: it is under way.
        due_s: When it is worth another, whatever its grounds; None: never.
        count: Attempts in a row that failed by circumstances.
        kind: What was short at the last of them; empty: none failed so.
    """

    grounds: object
    begun_s: float
    reason: str = ""
    due_s: float | None = None
    count: int = 0
    kind: str = ""


class LoadAttempts:
    """The last attempt at each version that did not come to serve.

    Args:
        clock: Monotonic seconds.
        wall_s: Seconds since the epoch.
        chance: Uniform in 0..1.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._wall_s = wall_s
        self._chance = chance
        self._lock = threading.Lock()
        self._attempts: dict[Name, _Attempt] = {}

    def begin(self, name: Name, grounds: object) -> None:
        """Notes that an attempt begins."""
        with self._lock:
            before = self._attempts.get(name)
            count, kind = (before.count, before.kind) if before and before.grounds == grounds else (0, "")
            self._attempts[name] = _Attempt(grounds, self._clock(), count=count, kind=kind)

    def fail(self, name: Name, error: BaseException, told_as: str = "failed") -> str:
        """Notes and logs that it failed; what is short is logged once, however often it is tried again.

        Args:
            name: The version.
            error: Why.
            told_as: What became of the version, for the log.

        Returns:
            Why, fit for a caller, with the time of the next attempt where there will be one.
        """
        reason = str(error) if isinstance(error, LoadError) else "internal error while loading; the log has it"
        known = None if isinstance(error, LoadError) else error
        with self._lock:
            attempt = self._attempts.setdefault(name, _Attempt(None, self._clock()))
            is_told = False
            if isinstance(error, ShortageError):
                is_told = attempt.kind == error.kind
                wait_s = self._wait_s(attempt)
                attempt.count, attempt.kind = attempt.count + 1, error.kind
                attempt.due_s = self._clock() + wait_s
                reason += f"; tried again at {_time_text(self._wall_s() + wait_s)}"
            attempt.reason = reason
        if not is_told:
            _log.error("%s: %s version %d: %s", told_as, *name, reason, exc_info=known)
        return reason

    def forget(self, name: Name) -> None:
        """Forgets a version: it serves, or is to be tried again."""
        with self._lock:
            self._attempts.pop(name, None)

    def keep(self, names: set[Name]) -> None:
        """Forgets all other versions."""
        with self._lock:
            for gone in self._attempts.keys() - names:
                del self._attempts[gone]

    def reason(self, name: Name) -> str:
        """Returns why the last attempt failed; empty where none did."""
        with self._lock:
            attempt = self._attempts.get(name)
            return attempt.reason if attempt else ""

    def is_worth_another(self, name: Name, grounds: object) -> bool:
        """Tells whether another attempt may end otherwise than the last one, which failed."""
        with self._lock:
            attempt = self._attempts.get(name)
            if attempt is None or attempt.grounds != grounds:
                return True
            return attempt.due_s is not None and self._clock() >= attempt.due_s

    def next_due_s(self) -> float | None:
        """Returns when the next attempt is due, by the monotonic clock; None where none is."""
        with self._lock:
            return min((each.due_s for each in self._attempts.values() if each.due_s is not None), default=None)

    def _wait_s(self, attempt: _Attempt) -> float:
        usual_s = min(FIRST_WAIT_S * 2.0**attempt.count, LONGEST_WAIT_S)
        long_s = _TIMES_ITS_LENGTH * (self._clock() - attempt.begun_s)
        return max(usual_s, long_s) * (1 + _JITTER * (2 * self._chance() - 1))


def _time_text(at_s: float) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(at_s))
