"""Contestants at one batch size: prepared within a limit, their answers checked, then timed in turns.

Shapes: T trials, K calls per trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fitserve_benchmarks.compiler_cache import empty_compiler_cache
from fitserve_benchmarks.contestants import HOST_TO_HOST, Contestant, Entry
from fitserve_benchmarks.latency_plan import Measured, Plan
from fitserve_benchmarks.peak_memory import DeviceMemory, PeakMemory
from fitserve_benchmarks.rows import Row
from fitserve_benchmarks.scenario_rows import ScenarioRow
from fitserve_benchmarks.scenarios import SCENARIO_TRIALS, Outcome, Scenario, ScenarioRun
from fitserve_benchmarks.statistics import Times, percentile, samples_for_percentile
from fitserve_benchmarks.subject import Array, Batch, Subject
from fitserve_benchmarks.time_limit import TimeLimitError, time_limit
from fitserve_benchmarks.timing import time_calls, warm_up

POOL_SIZE: Final = 16
"""Different random batches that the calls go round."""

_AGREEMENT: Final = 1e-4


@dataclass
class _Prepared:
    """A contestant that is ready, or why it is not.

    Args:
        entry: Who.
        row: What is known of it; its `skipped` says why it does not run.
        contestant: None where it does not run.
    """

    entry: Entry
    row: Row
    contestant: Contestant | None = None


@dataclass
class _Running:
    """A contestant that takes part.

    Args:
        prepared: Who.
        contestant: Itself.
        call_s: What a call takes, warm.
    """

    prepared: _Prepared
    contestant: Contestant
    call_s: float = 0.0


@dataclass
class Contest:
    """All contestants with one thread count, batch size after batch size.

    Args:
        subject: The version.
        plan: Trials, budgets and limits.
        thread_count: Threads of this process.
        entries: Who may take part; the first that does is the reference.
        say: Takes a line of progress.
    """

    subject: Subject
    plan: Plan
    thread_count: int
    entries: Sequence[Entry]
    say: Callable[[str], None]
    _given_up: dict[tuple[str, str], str] = field(init=False, default_factory=dict)

    def at(self, batch_size: int, batches: Sequence[Batch]) -> Measured:
        """Measures at one batch size, and the scenarios that have it.

        Args:
            batch_size: Examples of each batch.
            batches: What calls go round.
        """
        everybody = [self._prepare(entry, batches[0], batch_size) for entry in self.entries]
        running = [_Running(one, one.contestant) for one in everybody if one.contestant is not None]
        _check(running, batches)
        for one in running:
            one.call_s = warm_up(one.contestant, batches)
        if batch_size in self.plan.batch_sizes:
            self._take_turns(running, batches)
        scenarios = [one for one in self.plan.wanted_scenarios if one.batch_size == batch_size]
        return Measured(
            tuple(one.row for one in everybody) if batch_size in self.plan.batch_sizes else (),
            tuple(row for scenario in scenarios for row in self._scenario(scenario, everybody, running, batches)),
        )

    def _prepare(self, entry: Entry, batch: Batch, batch_size: int) -> _Prepared:
        row = Row(entry.name, entry.device, batch_size, self.thread_count, transfer=entry.transfer)
        who = (entry.name, entry.device)
        if reason := self._given_up.get(who) or entry.why_not(self.subject):
            return _Prepared(entry, replace(row, skipped=reason))
        contestant = entry.make(self.subject, self.thread_count)
        empty_compiler_cache()
        try:
            with time_limit(self.plan.limit_s):
                return _Prepared(entry, _prepared_row(row, contestant, batch), contestant)
        except TimeLimitError as error:
            self._given_up[who] = f"preparing it for batch {batch_size}: {error}"
            self.say(f"{row.label}: {self._given_up[who]}")
            return _Prepared(entry, replace(row, skipped=self._given_up[who]))
        except Exception as error:  # a library that cannot compile or load here must not end the others' run
            return _Prepared(entry, replace(row, skipped=_first_line(error)))

    def _take_turns(self, running: Sequence[_Running], batches: Sequence[Batch]) -> None:
        """Times (T, K) calls of each; every second trial goes through the contestants backwards."""
        times = [np.empty((self.plan.trials, self._calls_per_trial(one.call_s))) for one in running]
        for trial in range(self.plan.trials):
            order = range(len(running)) if trial % 2 == 0 else reversed(range(len(running)))
            for index in order:
                time_calls(running[index].contestant, batches, times[index][trial])
        for one, times_s in zip(running, times, strict=True):
            one.prepared.row = _with_times(one.prepared.row, times_s)

    def _calls_per_trial(self, call_s: float) -> int:
        wanted = -(-samples_for_percentile(0.99) // self.plan.trials)
        affordable = int(self.plan.budget_s / (self.plan.trials * max(call_s, 1e-9)))
        return max(1, min(wanted, affordable))

    def _scenario(
        self,
        scenario: Scenario,
        everybody: Sequence[_Prepared],
        running: Sequence[_Running],
        batches: Sequence[Batch],
    ) -> list[ScenarioRow]:
        """Measures one scenario. Queries begin and end on the host: who leaves its answers on a device is no part."""
        self.say(f"{self.subject.model}: {scenario.name}")
        taking_part = [one for one in running if one.prepared.entry.transfer == HOST_TO_HOST]
        run = ScenarioRun(
            scenario,
            batches,
            self.plan.budget_s,
            self.plan.server_bound_s,
            min(self.plan.trials, SCENARIO_TRIALS),
        )
        outcomes = run.measure([one.contestant for one in taking_part], [one.call_s for one in taking_part])
        found = {id(one.prepared): outcome for one, outcome in zip(taking_part, outcomes, strict=True)}
        hosts = [one for one in everybody if one.entry.transfer == HOST_TO_HOST]
        return [_scenario_row(scenario, one.row, found.get(id(one), one.row.skipped or "")) for one in hosts]


def _prepared_row(row: Row, contestant: Contestant, batch: Batch) -> Row:
    """Loads, compiles and calls for the first time; fills in what that took."""
    memory, device_memory = PeakMemory(), DeviceMemory()
    preparation = contestant.prepare(batch)
    started_s = time.perf_counter()
    contestant.run(batch)
    return replace(
        row,
        first_call_s=time.perf_counter() - started_s,
        load_s=preparation.load_s,
        compile_s=preparation.compile_s,
        peak_memory_bytes=memory.growth_bytes(),
        device_memory_bytes=device_memory.growth_bytes() if row.device == "cuda" else None,
        nodes=preparation.nodes,
        fused_attention_count=preparation.fused_attention_count,
    )


def _check(running: Sequence[_Running], batches: Sequence[Batch]) -> None:
    """Holds everybody's answers against the first one's."""
    if not running:
        return
    expected = [running[0].contestant.run(batch) for batch in batches]
    largest = max(float(np.abs(array).max(initial=1.0)) for outputs in expected for array in outputs)
    for one in running:
        diff = _max_abs_diff(one.contestant, batches, expected)
        allowed = max(_AGREEMENT * largest, one.prepared.entry.bound or 0.0)
        one.prepared.row = replace(one.prepared.row, max_abs_diff=diff, agrees=diff <= allowed)


def _max_abs_diff(contestant: Contestant, batches: Sequence[Batch], expected: Sequence[tuple[Array, ...]]) -> float:
    diffs = [
        float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
        for batch, outputs in zip(batches, expected, strict=True)
        for found, wanted in zip(contestant.run(batch), outputs, strict=True)
    ]
    return max(diffs, default=0.0)


def _with_times(row: Row, times_s: Times) -> Row:
    return replace(
        row,
        trial_medians_s=tuple(np.median(times_s, axis=1).tolist()),
        p99_s=percentile(times_s.reshape(-1), 0.99),
        sample_count=times_s.size,
    )


def _scenario_row(scenario: Scenario, row: Row, outcome: Outcome | str) -> ScenarioRow:
    found = ScenarioRow(scenario.name, row.contestant, row.device, row.thread_count, scenario.batch_size)
    if isinstance(outcome, str):
        return replace(found, skipped=outcome)
    return replace(
        found,
        figure=outcome.figure,
        trial_figures=outcome.trial_figures,
        query_count=outcome.query_count,
        max_abs_diff=row.max_abs_diff,
        agrees=row.agrees,
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
