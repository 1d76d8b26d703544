"""The four scenarios of MLPerf Inference, on contestants in one process: how long a query takes, or how many there are.

Source: MLPerf Inference Rules, "Scenarios" (table) and "LoadGen Operation" (mlcommons/inference_policies,
inference_rules.adoc); Reddi et al., MLPerf Inference Benchmark, ISCA 2020, section IV. The names are theirs, the
results are not: `DIFFERENCES` says in what these differ from theirs.
Shapes: T trials, K queries of a trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.contestants import Contestant
from fitserve_benchmarks.poisson import arrival_times_s
from fitserve_benchmarks.scenario_rows import MULTI_STREAM, OFFLINE, SERVER, SINGLE_STREAM
from fitserve_benchmarks.statistics import Interval, Times, bootstrap_median, bootstrap_quantile, samples_for_percentile
from fitserve_benchmarks.subject import Batch
from fitserve_benchmarks.timing import settle, time_calls, timed_call, uncollected

SCENARIO_TRIALS: Final = 5
"""Turns of each contestant: MLPerf tries a rate five times, too."""

MULTI_STREAM_EXAMPLES: Final = 8
OFFLINE_EXAMPLES: Final = 24_576
OFFLINE_BATCH_SIZE: Final = 64

SINGLE_STREAM_ERROR: Final = 0.01
"""The 90th percentile is printed where its rank is known to a percentage point; the 99th to half a one."""

OVERDUE_SHARE: Final = 0.01
"""Queries that may take longer than the bound: the 99th percentile is within it."""

RATE_PRECISION: Final = 0.05
"""The largest rate is searched to a twentieth of what calls one after the other would give."""

DIFFERENCES: Final = (
    "Scenarios bear MLPerf's names; these are no MLPerf results: queries come from the process that answers them, "
    "take 5 turns of as many queries as the percentile needs instead of 10 minutes, and go round 16 random batches; "
    "answers are checked before and not during; Server's queries are answered one by one in their order, none are "
    "joined; Offline's bag is cut into batches of 64 and is smaller where the budget does not afford 24,576 examples."
)

_HIGHEST: Final = 1.1
_HIGHER: Final = 1.5
_LOWEST: Final = 0.03
_PROBES: Final = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contestant's turn gave.

    Args:
        figure: Seconds of a query at the scenario's percentile, or examples a second.
        query_count: Queries.
        times_s: (K) each query's time; empty where the figure is a rate.
    """

    figure: float
    query_count: int
    times_s: Times


@dataclass(frozen=True, slots=True)
class Outcome:
    """All turns of one contestant.

    Args:
        figure: Over all turns, with its interval.
        trial_figures: (T) each turn's.
        query_count: Queries of all turns; of Server those of the rates that held.
    """

    figure: Interval
    trial_figures: tuple[float, ...]
    query_count: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Args:
        name: MLPerf's.
        batch_size: Examples that a contestant gets at once.
        fraction: Percentile of its figure, as a fraction; None for a rate.
        error: Half width within which that percentile's rank must be known.
    """

    name: str
    batch_size: int
    fraction: float | None = None
    error: float = 0.0


SCENARIOS: Final = (
    Scenario(SINGLE_STREAM, 1, 0.9, SINGLE_STREAM_ERROR),
    Scenario(MULTI_STREAM, MULTI_STREAM_EXAMPLES, 0.99, 0.005),
    Scenario(SERVER, 1),
    Scenario(OFFLINE, OFFLINE_BATCH_SIZE),
)

ALL_SCENARIOS: Final = "all"
NO_SCENARIOS: Final = "none"


def scenario_names(text: str) -> tuple[str, ...]:
    """Reads names separated by commas, `all` or `none`.

    Raises:
        ValueError: a name that no scenario has.
    """
    known = tuple(scenario.name for scenario in SCENARIOS)
    if text in (ALL_SCENARIOS, NO_SCENARIOS):
        return known if text == ALL_SCENARIOS else ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"scenarios: expected all, none, or some of {', '.join(known)}; got '{unknown[0][:64]}'")
    return names


@dataclass(frozen=True, slots=True)
class ScenarioRun:
    """One scenario with one set of batches.

    Args:
        scenario: Which.
        batches: What queries go round, each of the scenario's batch size.
        budget_s: Time that one contestant's queries may take.
        bound_s: What 99 of 100 queries of Server may take at most.
        trials: Turns of each contestant; of Server as many of them as the budget affords.
    """

    scenario: Scenario
    batches: Sequence[Batch]
    budget_s: float
    bound_s: float
    trials: int = SCENARIO_TRIALS

    def measure(self, contestants: Sequence[Contestant], calls_s: Sequence[float]) -> list[Outcome | str]:
        """Lets contestants take turns, every second time the other way round.

        Args:
            contestants: Prepared and warm.
            calls_s: What one call of each takes.

        Returns:
            For each contestant its outcome, or why there is none.
        """
        turns: list[list[Turn]] = [[] for _ in contestants]
        reasons = [self._why_not(call_s) for call_s in calls_s]
        for trial in range(self.trials):
            order = range(len(contestants))
            for index in order if trial % 2 == 0 else reversed(order):
                if not reasons[index] and trial < self._turn_count(calls_s[index]):
                    turns[index].append(self._turn(contestants[index], calls_s[index], trial))
        return [reason or self._outcome(taken) for reason, taken in zip(reasons, turns, strict=True)]

    def _why_not(self, call_s: float) -> str:
        if self.scenario.name == SERVER and call_s > self.bound_s:
            return f"one query takes {1e3 * call_s:.3g} ms, the bound is {1e3 * self.bound_s:g} ms"
        needed_s = self._needed_s(call_s)
        if needed_s > self.budget_s:
            return f"needs {self._needed_text()}: about {needed_s:.3g} s, the budget is {self.budget_s:g} s"
        return ""

    def _needed_s(self, call_s: float) -> float:
        """Gives the least time that proves anything: enough queries, one search, or one batch a turn."""
        if self.scenario.fraction is not None:
            return samples_for_percentile(self.scenario.fraction, self.scenario.error) * call_s
        return search_s(call_s, self.bound_s) if self.scenario.name == SERVER else self.trials * call_s

    def _needed_text(self) -> str:
        if self.scenario.fraction is not None:
            return f"{samples_for_percentile(self.scenario.fraction, self.scenario.error):,} queries"
        return "a search over the rates" if self.scenario.name == SERVER else "a batch each turn"

    def _turn_count(self, call_s: float) -> int:
        if self.scenario.name != SERVER:
            return self.trials
        return int(self.budget_s / search_s(call_s, self.bound_s))

    def _turn(self, contestant: Contestant, call_s: float, trial: int) -> Turn:
        if self.scenario.fraction is not None:
            return self._stream(contestant, self.scenario.fraction)
        if self.scenario.name == OFFLINE:
            return self._bag(contestant, call_s)
        return self._search(contestant, call_s, trial)

    def _stream(self, contestant: Contestant, fraction: float) -> Turn:
        """The next query leaves when the one before it is answered."""
        count = -(-samples_for_percentile(fraction, self.scenario.error) // self.trials)
        times_s = np.empty(count)
        time_calls(contestant, self.batches, times_s)
        return Turn(float(np.quantile(times_s, fraction)), count, times_s)

    def _bag(self, contestant: Contestant, call_s: float) -> Turn:
        """All examples are there at the start; batches follow each other."""
        affordable = int(self.budget_s / (self.trials * call_s))
        count = max(1, min(OFFLINE_EXAMPLES // self.scenario.batch_size, affordable))
        call = timed_call(contestant)
        settle(contestant, self.batches)
        with uncollected():
            started_s = time.perf_counter()
            for index in range(count):
                call(self.batches[index % len(self.batches)])
            taken_s = time.perf_counter() - started_s
        return Turn(count * self.scenario.batch_size / taken_s, count, np.empty(0))

    def _search(self, contestant: Contestant, call_s: float, trial: int) -> Turn:
        settle(contestant, self.batches)
        call = timed_call(contestant)
        query_count = 0

        def holds(rate: float) -> bool:
            nonlocal query_count
            due_s = arrival_times_s(rate, probe_s(rate, self.bound_s), seed=trial)
            with uncollected():
                is_held = meets_bound(call, self.batches, due_s, self.bound_s)
            query_count += len(due_s) if is_held else 0
            return is_held

        return Turn(largest_rate(holds, _HIGHEST / call_s), query_count, np.empty(0))

    def _outcome(self, turns: Sequence[Turn]) -> Outcome | str:
        figures = tuple(turn.figure for turn in turns)
        if not float(np.median(figures)):
            found = sum(figure > 0 for figure in figures)
            return f"{found} of {len(figures)} searches found a rate that meets the bound of {1e3 * self.bound_s:g} ms"
        if self.scenario.fraction is None:
            figure = bootstrap_median(np.array(figures))
        else:
            figure = bootstrap_quantile(np.array([turn.times_s for turn in turns]), self.scenario.fraction)
        return Outcome(figure, figures, sum(turn.query_count for turn in turns))


def probe_s(rate: float, bound_s: float) -> float:
    """Gives how long a rate is tried.

    Enough queries for the 99th percentile, and so long that a rate which is a twentieth too high has made a queue
    longer than the bound.

    Args:
        rate: Queries a second.
        bound_s: The bound.
    """
    return max(1.1 * samples_for_percentile(0.99) / rate, bound_s / RATE_PRECISION)


def search_s(call_s: float, bound_s: float) -> float:
    """Gives about how long a search takes for a contestant whose call takes so long."""
    return _PROBES * probe_s(0.8 / call_s, bound_s)


def meets_bound(call: Callable[[Batch], Any], batches: Sequence[Batch], due_s: Times, bound_s: float) -> bool:
    """Puts queries on at their times and answers them in order; tells whether 99 of 100 were within the bound.

    A query's time counts from when it was due, so that the queue before it is part of it. Ends where it is lost.

    Args:
        call: Answers one query.
        batches: What queries go round.
        due_s: (K) when each is due, ascending, from the start.
        bound_s: The bound.
    """
    clock, count, overdue = time.perf_counter, len(batches), 0
    allowed = int(OVERDUE_SHARE * len(due_s))
    begin_s = clock()
    for index, due in enumerate((begin_s + due_s).tolist()):
        while clock() < due:
            pass
        call(batches[index % count])
        if clock() - due > bound_s:
            overdue += 1
            if overdue > allowed:
                return False
    return True


def largest_rate(holds: Callable[[float], bool], highest: float) -> float:
    """Searches the largest rate that holds by halving, to `RATE_PRECISION` of the lowest that does not.

    Args:
        holds: Tells whether a rate does; true below some rate, false above it.
        highest: A rate that is probably too high, above 0; where it holds, higher ones are tried.

    Returns:
        The rate; 0 where not even a thirtieth of the highest holds: whatever else the machine did, this shows nothing.
    """
    low, high = 0.0, highest
    while holds(high):
        low, high = high, _HIGHER * high
    while high - low > RATE_PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
        if high < _LOWEST * highest:
            return 0.0
    return low
