"""How much one caller may use at once: requests per second, examples and bytes under way, a share of each queue.

A state machine without threads or a clock of its own: time comes in as an argument. With several workers accounts are
held to those of the others, see `shared_quotas`; queues are a worker's own, and so are their shares.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from fitserve_service.access.shared_quotas import SharedQuotas
from fitserve_service.errors import Reason, ServiceError

_SOON_S: Final = 0.05
"""When to try again where only the end of other requests makes room."""

_MAX_CALLERS: Final = 4096
"""Callers that are remembered; beyond, those that called longest ago are forgotten, but for calls under way."""

_EXPIRY_S: Final = 60.0
"""A caller who has not called for so long is forgotten, once its bucket is full."""

_LOOKED_AT: Final = 16
"""Callers that are looked at for one to forget: those with calls under way are bounded by their calls."""

_ALONE: Final = nullcontext()


@dataclass(frozen=True, slots=True)
class Limits:
    """A caller's quota, over all workers together; 0 is no bound.

    Args:
        requests_per_s: Requests over a long time.
        burst: Requests at once after a pause; 0: those of one second, at least 1.
        examples_in_flight: Rows that wait or run.
        bytes_in_flight: Bytes of requests that are not answered.
        queue_share: Share of a model's queue that the caller may fill, above 0; each worker has a queue.
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

    @property
    def has_sums(self) -> bool:
        """Whether there is a bound on anything that several workers add up."""
        return bool(self.requests_per_s or self.examples_in_flight or self.bytes_in_flight)


class Account:
    """What one caller uses. Invariants: nothing is ever below 0, or above its bound after it was taken.

    Over any time t at most `depth + t * requests_per_s` requests are let in.
    """

    __slots__ = ("_shared", "_who", "byte_count", "example_count", "filled_s", "hold_count", "level", "other_bytes",
                 "other_examples", "queued", "used_s")  # fmt: skip

    def __init__(self, who: str, limits: Limits, now_s: float, shared: SharedQuotas | None = None) -> None:
        self._who = who
        self._shared = shared
        self.level = limits.depth
        """Requests in the bucket at `filled_s`."""
        self.filled_s = now_s
        self.used_s = now_s
        """When the caller last began a request."""
        self.hold_count = 0
        self.byte_count = 0
        self.example_count = 0
        self.other_bytes = self.other_examples = 0
        """What the caller uses in other workers, as of the last `agreed`."""
        self.queued: Counter[Hashable] = Counter()
        """Examples by queue."""

    def agreed(self, limits: Limits) -> AbstractContextManager[None]:
        """Holds the account to the other workers' while a block reads or changes it."""
        return _ALONE if self._shared is None or not limits.has_sums else self._shared.opened(self._who, self)

    def is_idle(self, limits: Limits, now_s: float) -> bool:
        """Checks whether the caller has gone, so that forgetting the account changes nothing."""
        if now_s - self.used_s < _EXPIRY_S:
            return False
        gained = max(0.0, now_s - self.filled_s) * limits.requests_per_s
        return not self.hold_count and self.level + gained >= limits.depth

    def take_request(self, limits: Limits, now_s: float) -> float:
        """Takes one request from the bucket.

        Returns:
            0 where it was there; else when one will be, in seconds, and nothing is taken.
        """
        if not limits.requests_per_s:
            return 0.0
        gained = max(0.0, now_s - self.filled_s) * limits.requests_per_s
        self.level = min(limits.depth, self.level + gained)
        self.filled_s = now_s
        if self.level < 1.0:
            return (1.0 - self.level) / limits.requests_per_s
        self.level -= 1.0
        return 0.0


class Hold:
    """What one request uses until it is answered. `begin` first, then at most one `admit`; `release` ends it."""

    __slots__ = ("_account", "_byte_count", "_clock", "_example_count", "_limits", "_queue", "_who", "is_held")

    def __init__(self, who: str, account: Account, limits: Limits, byte_count: int, clock: Callable[[], float]) -> None:
        self._who = who
        self._account = account
        self._limits = limits
        self._byte_count = byte_count
        self._clock = clock
        self._example_count = 0
        self._queue: Hashable = None
        self.is_held = False

    def begin(self) -> None:
        """Takes the request and its bytes; a second call does nothing.

        Raises:
            ServiceError: QUOTA; nothing is taken.
        """
        if self.is_held:
            return
        with self._account.agreed(self._limits):
            self._take()
        self.is_held = True

    def _take(self) -> None:
        limits, account = self._limits, self._account
        total = account.byte_count + account.other_bytes + self._byte_count
        if limits.bytes_in_flight and total > limits.bytes_in_flight:
            raise _refusal(self._who, f"at most {limits.bytes_in_flight:g} bytes in flight", f"{total}", _SOON_S)
        wait_s = account.take_request(limits, self._clock())
        if wait_s > 0:
            raise _refusal(self._who, f"at most {limits.requests_per_s:g} requests per second", "more", wait_s)
        account.byte_count += self._byte_count
        account.hold_count += 1

    def admit(self, queue: Hashable, example_count: int, max_queued_examples: int) -> None:
        """Takes the request's examples and its place in a queue.

        Args:
            queue: Which queue, for example a loaded instance of a version.
            example_count: Rows, at least 0.
            max_queued_examples: Bound of the queue for all callers.

        Raises:
            ServiceError: QUOTA.
        """
        with self._account.agreed(self._limits):
            self._admit(queue, example_count, max_queued_examples)

    def _admit(self, queue: Hashable, example_count: int, max_queued_examples: int) -> None:
        limits, account = self._limits, self._account
        total = account.example_count + account.other_examples + example_count
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
        if not self.is_held:
            return
        self.is_held = False
        with self._account.agreed(self._limits):
            self._give_back()

    def _give_back(self) -> None:
        account = self._account
        account.hold_count -= 1
        account.byte_count -= self._byte_count
        if self._example_count:
            account.example_count -= self._example_count
            account.queued[self._queue] -= self._example_count
            if not account.queued[self._queue]:
                del account.queued[self._queue]


class Quotas:
    """The accounts of all callers, the one that called longest ago first. Lives on the loop thread.

    Args:
        clock: Monotonic seconds.
        shared: What the other workers know of the callers; None: there are none.
    """

    def __init__(self, clock: Callable[[], float], shared: SharedQuotas | None = None) -> None:
        self._clock = clock
        self._shared = shared
        self._accounts: OrderedDict[Hashable, tuple[Account, Limits]] = OrderedDict()

    def hold(self, caller: Hashable, limits: Limits, byte_count: int) -> Hold:
        """Makes the hold of a request, which holds nothing before `begin`."""
        known, now_s = self._accounts.get(caller), self._clock()
        if known is None:
            self._forget_some(now_s)
            account = Account(str(caller), limits, now_s, self._shared)
        else:
            account = known[0]
            account.used_s = now_s
        # A quota that was changed holds at once; what is under way stays on the account.
        self._accounts[caller] = account, limits
        self._accounts.move_to_end(caller)
        return Hold(str(caller), account, limits, byte_count, self._clock)

    def _forget_some(self, now_s: float) -> None:
        """Forgets callers before one is added: those of the oldest that are gone, and others for want of room."""
        for caller in [caller for caller, _ in zip(self._accounts, range(_LOOKED_AT), strict=False)]:
            account, limits = self._accounts[caller]
            is_crowded = len(self._accounts) >= _MAX_CALLERS and not account.hold_count
            if is_crowded or account.is_idle(limits, now_s):
                del self._accounts[caller]
            elif account.hold_count:
                # Else those at work would hide the others behind them.
                self._accounts.move_to_end(caller)


def _refusal(who: str, expected: str, found: str, retry_after_s: float) -> ServiceError:
    error = ServiceError(Reason.QUOTA, f"quota of {who}: expected {expected}, got {found}", caller=who)
    error.retry_after_s = retry_after_s
    return error
