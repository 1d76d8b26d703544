"""Which failed calls are made again, and when: at most five attempts, never past the deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc

from fitserve_client.errors import DeadlineExceededError, FitserveError

RETRYABLE_CODES: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""A stopping server ends calls with either; CANCELLED by the caller never becomes an error that could be retried."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter.

    The defaults pause for at least 1.5 s in all: longer than a server takes to restart.

    Args:
        max_attempts: Calls made at most, the first one included; 1 never retries.
        first_pause_s: Longest pause after the first attempt, seconds.
        multiplier: Each longest pause is this many times the one before.
        max_pause_s: No pause is longer, seconds.
    """

    max_attempts: int = 5
    first_pause_s: float = 0.2
    multiplier: float = 2.0
    max_pause_s: float = 2.0

    def pause_s(self, attempt: int, fraction: float) -> float:
        """Gives the pause after a failed attempt.

        Args:
            attempt: Number of the attempt that failed, >= 1.
            fraction: Chance, 0..1: spreads callers that failed together over the upper half of the pause.
        """
        longest: float = min(self.first_pause_s * self.multiplier ** (attempt - 1), self.max_pause_s)
        return longest * (0.5 + 0.5 * fraction)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from.

    Args:
        clock: Monotonic seconds.
        chance: Numbers in 0..1.
    """

    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random


class Attempts:
    """Counts the attempts of one call and decides over each failure. Owned by the one call that it counts.

    Args:
        policy: Rules.
        deadline_s: When the caller stops waiting, in seconds of the clock.
        timing: Clock and chance.
    """

    def __init__(self, policy: RetryPolicy, deadline_s: float, timing: Timing) -> None:
        self._policy = policy
        self._deadline_s = deadline_s
        self._timing = timing
        self._count = 0

    def begin(self) -> float:
        """Begins an attempt; gives the time that it has, seconds.

        Raises:
            DeadlineExceededError: none is left.
        """
        remaining_s = self._deadline_s - self._timing.clock()
        if remaining_s <= 0:
            raise DeadlineExceededError("call: expected to begin before its deadline, got there too late")
        self._count += 1
        return remaining_s

    def pause_after(self, error: FitserveError, *, is_retryable: bool) -> float:
        """Decides over a failed attempt; gives the pause before the next one, seconds.

        A server that says when to try again (a full queue, a quota) is tried again then, and not before.

        Raises:
            FitserveError: the error itself, where there is to be no next attempt.
        """
        is_hopeful = error.code in RETRYABLE_CODES or error.retry_after_s is not None
        if not is_retryable or not is_hopeful or self._count >= self._policy.max_attempts:
            raise error
        pause_s = self._policy.pause_s(self._count, self._timing.chance()) + (error.retry_after_s or 0.0)
        if self._timing.clock() + pause_s >= self._deadline_s:
            raise error
        return pause_s
