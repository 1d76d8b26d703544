"""How much one caller may use at once: requests per second, examples and bytes under way, a share of each queue.

A state machine without I/O, threads or a clock of its own: time comes in as an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from fitserve_service.errors import Reason, ServiceError

_SOON_S: Final = 0.05
"""When to try again where only the end of other requests makes room."""

_MAX_IDLE: Final = 4096
"""Callers that are remembered though nothing of theirs is under way."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A caller's quota, in each process of the server; 0 is no bound.

    Args:
        requests_per_s: Requests over a long time.
        burst: Requests at once after a pause; 0: those of one second, at least 1.
        examples_in_flight: Rows that wait or run.
        bytes_in_flight: Bytes of requests that are not answered.
        queue_share: Share of a model's queue that the caller may fill, above 0.
    """

    requests_per_s: float = 0.0
    burst: float = 0.0
    examples_in_flight: float = 0.0
    bytes_in_flight: float = 0.0
    queue_share: float = 0.5

    @property
    def depth(self) -> float:
        """Requests that the bucket holds when it is full."""
        return max(1.0, self.burst or self.requests_per_s)


class Account:
    """What one caller uses. Invariants: nothing is ever below 0, or above its bound after it was taken.

    Over any time t at most `depth + t * requests_per_s` requests are let in.
    """

    __slots__ = ("_filled_s", "_level", "byte_count", "example_count", "hold_count", "queued")

    def __init__(self, limits: Limits, now_s: float) -> None:
        self._level = limits.depth
        self._filled_s = now_s
        self.hold_count = 0
        self.byte_count = 0
        self.example_count = 0
        self.queued: Counter[Hashable] = Counter()
        """Examples by queue."""

    def is_idle(self, limits: Limits, now_s: float) -> bool:
        """Tells whether forgetting the account would change nothing."""
        self._fill(limits, now_s)
        return not self.hold_count and self._level >= limits.depth

    def take_request(self, limits: Limits, now_s: float) -> float:
        """Takes one request from the bucket.

        Returns:
            0 where it was there; else when one will be, in seconds, and nothing is taken.
        """
        if not limits.requests_per_s:
            return 0.0
        self._fill(limits, now_s)
        if self._level < 1.0:
            return (1.0 - self._level) / limits.requests_per_s
        self._level -= 1.0
        return 0.0

    def _fill(self, limits: Limits, now_s: float) -> None:
        gained = max(0.0, now_s - self._filled_s) * limits.requests_per_s
        self._level = min(limits.depth, self._level + gained)
        self._filled_s = now_s


class Hold:
    """What one request uses until it is answered. `begin` first, then at most one `admit`; `release` ends it."""

    __slots__ = ("_account", "_byte_count", "_clock", "_example_count", "_is_held", "_limits", "_queue", "_who")

    def __init__(self, who: str, account: Account, limits: Limits, byte_count: int, clock: Callable[[], float]) -> None:
        self._who = who
        self._account = account
        self._limits = limits
        self._byte_count = byte_count
        self._clock = clock
        self._example_count = 0
        self._queue: Hashable = None
        self._is_held = False

    def begin(self) -> None:
        """Takes the request and its bytes; a second call does nothing.

        Raises:
            ServiceError: QUOTA; nothing is taken.
        """
        if self._is_held:
            return
        limits, account = self._limits, self._account
        total = account.byte_count + self._byte_count
        if limits.bytes_in_flight and total > limits.bytes_in_flight:
            raise _refusal(self._who, f"at most {limits.bytes_in_flight:g} bytes in flight", f"{total}", _SOON_S)
        wait_s = account.take_request(limits, self._clock())
        if wait_s > 0:
            raise _refusal(self._who, f"at most {limits.requests_per_s:g} requests per second", "more", wait_s)
        account.byte_count += self._byte_count
        account.hold_count += 1
        self._is_held = True

    def admit(self, queue: Hashable, example_count: int, max_queued_examples: int) -> None:
        """Takes the request's examples and its place in a queue.

        Args:
            queue: Which queue, for example a loaded instance of a version.
            example_count: Rows, at least 0.
            max_queued_examples: Bound of the queue for all callers.

        Raises:
            ServiceError: QUOTA.
        """
        limits, account = self._limits, self._account
        total = account.example_count + example_count
        if limits.examples_in_flight and total > limits.examples_in_flight:
            raise _refusal(self._who, f"at most {limits.examples_in_flight:g} examples in flight", f"{total}", _SOON_S)
        share = max(1, int(limits.queue_share * max_queued_examples))
        in_queue = account.queued[queue] + example_count
        if in_queue > share:
            raise _refusal(self._who, f"at most {share} examples in one model's queue", f"{in_queue}", _SOON_S)
        if example_count:
            self._queue, self._example_count = queue, example_count
            account.example_count += example_count
            account.queued[queue] += example_count

    def release(self) -> None:
        """Gives everything back; a second call does nothing."""
        if not self._is_held:
            return
        self._is_held = False
        account = self._account
        account.hold_count -= 1
        account.byte_count -= self._byte_count
        if self._example_count:
            account.example_count -= self._example_count
            account.queued[self._queue] -= self._example_count
            if not account.queued[self._queue]:
                del account.queued[self._queue]


class Quotas:
    """The accounts of all callers. Lives on the loop thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: dict[Hashable, tuple[Account, Limits]] = {}

    def hold(self, caller: Hashable, limits: Limits, byte_count: int) -> Hold:
        """Makes the hold of a request, which holds nothing before `begin`."""
        known = self._accounts.get(caller)
        if known is None or known[1] is not limits:
            if known is None and len(self._accounts) >= _MAX_IDLE:
                self._forget_idle()
            # A quota that was changed holds at once; what is under way stays on the account.
            known = self._accounts[caller] = (known[0] if known else Account(limits, self._clock()), limits)
        return Hold(str(caller), known[0], limits, byte_count, self._clock)

    def _forget_idle(self) -> None:
        now_s = self._clock()
        for caller in [key for key, (account, limits) in self._accounts.items() if account.is_idle(limits, now_s)]:
            del self._accounts[caller]


def _refusal(who: str, expected: str, found: str, retry_after_s: float) -> ServiceError:
    error = ServiceError(Reason.QUOTA, f"quota of {who}: expected {expected}, got {found}", caller=who)
    error.retry_after_s = retry_after_s
    return error
