"""Quotas as a state machine: nothing is below 0 or above its bound, and what is held comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fitserve_service.access.access_file import Caller
from fitserve_service.access.quotas import Hold, Limits, Quotas
from fitserve_service.errors import Reason, ServiceError

LIMITS = Limits(requests_per_s=2.0, burst=5, examples_in_flight=40, bytes_in_flight=1000, queue_share=0.5)
QUEUE_EXAMPLES = 30
CALLERS = tuple(Caller("token", name) for name in "ab")


def refusal(take: Callable[[], None]) -> ServiceError | None:
    try:
        take()
    except ServiceError as error:
        if error.reason is not Reason.QUOTA:
            raise
        return error
    return None


class QuotaMachine(RuleBasedStateMachine):
    """Requests of two callers come and go; a plain model counts along."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.quotas = Quotas(lambda: self.now_s)
        self.begun: list[tuple[float, Caller]] = []
        self.held: dict[int, tuple[Caller, int]] = {}
        self.rows: dict[int, tuple[Caller, str, int]] = {}

    @rule(target=requests, caller=st.sampled_from(CALLERS), size=st.integers(0, 1200))
    def begin(self, caller: Caller, size: int) -> Hold:
        hold = self.quotas.hold(caller, LIMITS, size)
        used = sum(size for who, size in self.held.values() if who == caller)
        recent = [
            sum(1 for at_s, who in self.begun if who == caller and at_s > self.now_s - window_s) < 5 + 2 * window_s
            for window_s in (0.5, 1, 5, 60)
        ]
        error = refusal(hold.begin)
        if error is not None and used + size <= 1000:
            # It is the rate, then; and it says when: at that time the same request is let in.
            assert error.retry_after_s
            self.now_s += error.retry_after_s + 1e-9
            hold.begin()
        elif error is None:
            assert used + size <= 1000
            assert all(recent)
        if error is None or used + size <= 1000:
            self.begun.append((self.now_s, caller))
            self.held[id(hold)] = (caller, size)
        return hold

    @rule(hold=requests, queue=st.sampled_from("xy"), rows=st.integers(0, 25))
    def admit(self, hold: Hold, queue: str, rows: int) -> None:
        if id(hold) not in self.held or id(hold) in self.rows:
            return
        caller = self.held[id(hold)][0]
        own = [(name, count) for who, name, count in self.rows.values() if who == caller]
        total = sum(count for _, count in own) + rows
        in_queue = sum(count for name, count in own if name == queue) + rows
        error = refusal(lambda: hold.admit(queue, rows, QUEUE_EXAMPLES))
        assert (error is None) == (total <= 40 and in_queue <= 15)
        if error is None:
            self.rows[id(hold)] = (caller, queue, rows)

    @rule(hold=consumes(requests))
    def release(self, hold: Hold) -> None:
        for _ in range(2):
            hold.release()
        self.held.pop(id(hold), None)
        self.rows.pop(id(hold), None)

    @rule(pause_s=st.floats(0, 30))
    def wait(self, pause_s: float) -> None:
        self.now_s += pause_s

    @invariant()
    def accounts_are_what_is_held(self) -> None:
        for caller, (account, _) in self.quotas._accounts.items():
            queued: Counter[str] = Counter()
            for who, queue, rows in self.rows.values():
                if who == caller and rows:
                    queued[queue] += rows
            assert account.byte_count == sum(size for who, size in self.held.values() if who == caller)
            assert account.hold_count == sum(1 for who, _ in self.held.values() if who == caller)
            assert account.example_count == queued.total()
            assert {queue: rows for queue, rows in account.queued.items() if rows} == dict(queued)


TestQuotaMachine = QuotaMachine.TestCase
TestQuotaMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@settings(max_examples=100)
@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(0, 50),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_over_any_time_at_most_the_burst_and_the_rate_are_let_in(
    rate: float, burst: float, pauses: list[float]
) -> None:
    limits, now_s = Limits(requests_per_s=rate, burst=burst), 0.0
    quotas = Quotas(lambda: now_s)
    let_in: list[float] = []
    for pause_s in pauses:
        now_s += pause_s
        hold = quotas.hold(CALLERS[0], limits, 1)
        try:
            hold.begin()
        except ServiceError:
            continue
        let_in.append(now_s)
        hold.release()
    for first, begin_s in enumerate(let_in):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= limits.depth + (let_in[last] - begin_s) * rate + 1e-6


def test_one_caller_cannot_fill_a_queue_and_the_other_has_room() -> None:
    quotas = Quotas(lambda: 0.0)
    greedy, modest = (quotas.hold(caller, Limits(), 1) for caller in CALLERS)
    greedy.begin()
    modest.begin()
    with pytest.raises(ServiceError, match="at most 50 examples in one model's queue, got 51"):
        greedy.admit("m", 51, 100)
    greedy.admit("m", 50, 100)
    modest.admit("m", 50, 100)
    another = quotas.hold(CALLERS[0], Limits(), 1)
    another.begin()
    with pytest.raises(ServiceError) as caught:
        another.admit("m", 1, 100)
    assert (caught.value.reason, caught.value.metadata["caller"]) == (Reason.QUOTA, "token:a")
    another.admit("other", 1, 100)


def test_a_quota_that_was_changed_holds_at_once_and_what_is_under_way_stays_counted() -> None:
    quotas = Quotas(lambda: 0.0)
    before = quotas.hold(CALLERS[0], Limits(), 600)
    before.begin()
    narrow = Limits(bytes_in_flight=1000)
    with pytest.raises(ServiceError, match="at most 1000 bytes in flight, got 1100"):
        quotas.hold(CALLERS[0], narrow, 500).begin()
    before.release()
    quotas.hold(CALLERS[0], narrow, 500).begin()


def test_callers_that_are_idle_are_forgotten_and_those_at_work_are_not() -> None:
    now_s = 0.0
    quotas = Quotas(lambda: now_s)
    limits = Limits(requests_per_s=1)
    busy = quotas.hold(Caller("peer", "busy"), limits, 7)
    busy.begin()
    for number in range(10_000):
        now_s += 2.0
        hold = quotas.hold(Caller("peer", str(number)), limits, 1)
        hold.begin()
        hold.release()
    assert len(quotas._accounts) <= 4096
    assert quotas._accounts[Caller("peer", "busy")][0].byte_count == 7
