"""The scenarios' arithmetic, and a run of all four on a contestant that answers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_benchmarks import scenarios
from fitserve_benchmarks.contestants import Preparation
from fitserve_benchmarks.scenarios import (
    OFFLINE_EXAMPLES,
    RATE_PRECISION,
    SCENARIOS,
    Outcome,
    ScenarioRun,
    largest_rate,
    meets_bound,
    probe_s,
    scenario_names,
    search_s,
)
from fitserve_benchmarks.statistics import Times, samples_for_percentile
from fitserve_benchmarks.subject import Array, Batch

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


class Clock:
    """A clock that a look at moves on a little, and a call by what it takes."""

    def __init__(self, look_s: float = 1e-6) -> None:
        self.now_s, self._look_s = 0.0, look_s

    def __call__(self) -> float:
        self.now_s += self._look_s
        return self.now_s


class Instant:
    """A contestant that answers at once and counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def prepare(self, batch: Batch) -> Preparation:  # noqa: ARG002
        return Preparation(0.0)

    def run(self, batch: Batch) -> tuple[Array, ...]:
        self.count += 1
        return tuple(batch.values())


def batches(size: int = 1) -> list[Batch]:
    return [{"x": np.zeros((size, 1), np.float32)} for _ in range(4)]


def is_met(monkeypatch: pytest.MonkeyPatch, due_s: Sequence[float], calls_s: Sequence[float], bound_s: float) -> bool:
    clock, taken = Clock(look_s=0.01), iter(calls_s)
    monkeypatch.setattr(scenarios.time, "perf_counter", clock)

    def call(_: Batch) -> None:
        clock.now_s += next(taken)

    return meets_bound(call, batches(), np.array(due_s), bound_s)


@given(limit=st.floats(0.1, 1e6), start=st.floats(0.2, 4.0))
def test_the_largest_rate_is_found_to_its_precision(limit: float, start: float) -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = largest_rate(holds, start * limit)
    assert found <= limit
    lost = min(rate for rate in asked if rate > limit)
    assert lost - found <= RATE_PRECISION * lost * (1 + 1e-9)
    assert found in asked


def test_where_no_rate_holds_the_search_ends_with_none() -> None:
    assert largest_rate(lambda _: False, 100.0) == 0


def test_a_query_waits_for_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Calls of 2 s, due every second: the n-th query ends n seconds late, so that 2 s hold for the first alone.
    due = [float(number) for number in range(100)]
    assert not is_met(monkeypatch, due, [2.0] * 100, 2.5)
    assert is_met(monkeypatch, due, [0.9] * 100, 1.0)
    assert is_met(monkeypatch, due, [2.0] * 100, 110.0)


@pytest.mark.parametrize(("slow_count", "is_within"), [(1, True), (2, False)])
def test_one_query_in_a_hundred_may_be_late(monkeypatch: pytest.MonkeyPatch, slow_count: int, is_within: bool) -> None:
    due = [10.0 * number for number in range(100)]
    calls = [5.0] * slow_count + [0.1] * (100 - slow_count)
    assert is_met(monkeypatch, due, calls, 1.0) == is_within


@given(rate=st.floats(0.01, 1e6), bound_s=st.floats(1e-4, 10))
def test_a_rate_is_tried_with_enough_queries_and_until_a_queue_would_show(rate: float, bound_s: float) -> None:
    assert rate * probe_s(rate, bound_s) >= samples_for_percentile(0.99)
    assert RATE_PRECISION * probe_s(rate, bound_s) >= bound_s * (1 - 1e-9)


def up_to(rate: float) -> Callable[..., bool]:
    """A server that meets its bound up to a rate, whatever the machine does meanwhile."""

    def is_met_at(_call: object, _batches: object, due_s: Times, _bound_s: float) -> bool:
        return len(due_s) / float(due_s[-1]) <= rate

    return is_met_at


@pytest.mark.slow
def test_all_four_have_their_figures_in_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "meets_bound", up_to(5e3))
    contestant = Instant()
    outcomes: dict[str, Outcome] = {}
    for name, scenario in BY_NAME.items():
        run = ScenarioRun(scenario, batches(scenario.batch_size), 60.0, bound_s=1e-3, trials=3)
        (outcome,) = run.measure([contestant], [1e-4 if name == "Server" else 1e-6])
        assert isinstance(outcome, Outcome), outcome
        outcomes[name] = outcome

    assert all(len(outcome.trial_figures) == 3 for outcome in outcomes.values())
    assert outcomes["SingleStream"].query_count >= samples_for_percentile(0.9, 0.01)
    assert outcomes["MultiStream"].query_count >= samples_for_percentile(0.99)
    assert outcomes["Offline"].query_count == 3 * OFFLINE_EXAMPLES // 64
    assert outcomes["SingleStream"].figure.estimate < 1
    assert 3e3 < outcomes["Server"].figure.estimate < 6e3


def test_what_the_budget_does_not_afford_is_not_measured_and_says_what_it_needs() -> None:
    contestant = Instant()

    def reason(name: str, call_s: float) -> Outcome | str:
        run = ScenarioRun(BY_NAME[name], batches(), budget_s=1.0, bound_s=0.01)
        return run.measure([contestant], [call_s])[0]

    assert reason("SingleStream", 0.02) == "needs 3,457 queries: about 69.1 s, the budget is 1 s"
    assert reason("MultiStream", 0.02) == "needs 1,521 queries: about 30.4 s, the budget is 1 s"
    assert reason("Server", 0.02) == "one query takes 20 ms, the bound is 10 ms"
    assert str(reason("Server", 0.009)).startswith("needs a search over the rates: about ")
    assert reason("Offline", 0.5) == "needs a batch each turn: about 2.5 s, the budget is 1 s"
    assert contestant.count == 0


@pytest.mark.slow
def test_contestants_take_turns_and_one_without_a_rate_leaves_the_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Instant(), Instant()
    order: list[object] = []

    def held(call: object, *_: object) -> bool:
        owner = call.__self__  # type: ignore[attr-defined]
        order.append(owner)
        return owner is second and order.count(second) % 7 != 1

    monkeypatch.setattr(scenarios, "meets_bound", held)
    run = ScenarioRun(BY_NAME["Server"], batches(), 60.0, bound_s=0.01, trials=3)
    lost, found = run.measure([first, second], [1e-3, 1e-3])
    assert lost == "0 of 3 searches found a rate that meets the bound of 10 ms"
    assert isinstance(found, Outcome)
    assert order[0] is first


def test_one_search_that_something_else_spoiled_is_one_figure_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.0, 900.0, 1000.0])
    monkeypatch.setattr(scenarios, "largest_rate", lambda *_: next(found))
    run = ScenarioRun(BY_NAME["Server"], batches(), 60.0, bound_s=0.01, trials=3)
    (outcome,) = run.measure([Instant()], [1e-3])
    assert isinstance(outcome, Outcome)
    assert outcome.trial_figures == (0.0, 900.0, 1000.0)
    assert outcome.figure.estimate == 900.0


def test_a_slow_contestant_gets_as_many_searches_as_the_budget_affords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "meets_bound", up_to(8e5))
    needed_s = search_s(1e-6, 1e-4)
    run = ScenarioRun(BY_NAME["Server"], batches(), 1.5 * needed_s, bound_s=1e-4)
    (outcome,) = run.measure([Instant()], [1e-6])
    assert isinstance(outcome, Outcome)
    assert len(outcome.trial_figures) == 1


def test_names_are_read_or_refused() -> None:
    assert scenario_names("all") == ("SingleStream", "MultiStream", "Server", "Offline")
    assert scenario_names("none") == ()
    assert scenario_names("Server, Offline,Server") == ("Server", "Offline")
    with pytest.raises(ValueError, match=r"scenarios: expected all, none, or some of SingleStream, .*; got 'server'"):
        scenario_names("server")
