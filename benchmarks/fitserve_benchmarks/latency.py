"""Times contestants against each other: in turns, with every answer checked first.

Each thread count runs in a process of its own (`measure_in_process`), because thread pools and compiled kernels read it
once.
Shapes: T trials, K calls per trial.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from fitserve_benchmarks.contestants import Contestant, Entry, ResidentContestant
from fitserve_benchmarks.further_contestants import all_entries, selected
from fitserve_benchmarks.peak_memory import PeakMemory
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.rows import Row, rows_from_json
from fitserve_benchmarks.statistics import Times, percentile, samples_for_percentile
from fitserve_benchmarks.subject import Array, Batch, Subject, SubjectError, open_subject, random_batches
from fitserve_benchmarks.threads import ThreadSetting

POOL_SIZE: Final = 16
"""Different random batches that the calls go round."""

SETTLE_CALLS: Final = 3
"""Calls at the start of each trial that are not timed: the contestant before has left its own data in the caches."""

_WARM_UP_S: Final = 0.2
_WARM_UP_CALLS: Final = 10
_AGREEMENT: Final = 1e-4


class WorkerFailedError(RuntimeError):
    """The measuring process died; what it had to say is on stderr."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Args:
        repository: Model repository.
        model: Model name.
        version: Version number; None takes the highest.
        run_dir: Run it was exported from; None measures ONNX Runtime alone.
        batch_sizes: Examples per call, each >= 1.
        trials: Trials of each contestant, >= 3 for a stable row.
        budget_s: Time that one row's calls may take; slow models get fewer samples instead of hours.
        entry_names: Contestants that take part; empty for the usual ones, `all` for everybody.
    """

    repository: str
    model: str
    version: int | None
    run_dir: str | None
    batch_sizes: tuple[int, ...]
    trials: int = 20
    budget_s: float = 10.0
    entry_names: Sequence[str] = ()

    def open_subject(self) -> Subject:
        """Opens what is measured. SubjectError: it cannot be."""
        run_dir = None if self.run_dir is None else Path(self.run_dir)
        return open_subject(Path(self.repository), self.model, self.version, run_dir)


def measure_in_process(plan: Plan, setting: ThreadSetting) -> tuple[Row, ...]:
    """Measures a plan with one thread setting, in a process that has it from its start.

    Its compiler cache is empty, so that compile times are those of a first compilation.

    Raises:
        WorkerFailedError: the process ended without rows.
        SubjectError: the subject cannot be measured.
    """
    work = json.dumps({"plan": asdict(plan), "setting": asdict(setting)})
    command = [sys.executable, "-m", "fitserve_benchmarks.latency_worker"]
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as folder:
        environment = {**setting.environment(), "TORCHINDUCTOR_CACHE_DIR": folder}
        answer = Path(folder, "rows.json")
        exit_code, _ = run_child([*command, str(answer)], environment=environment, message=work.encode())
        if exit_code != 0 or not answer.is_file():
            raise WorkerFailedError(f"measuring process: expected exit code 0, got {exit_code}")
        document = json.loads(answer.read_text())
    if error := document.get("error"):
        raise SubjectError(error)
    return rows_from_json(document["rows"])


def measure(
    subject: Subject,
    plan: Plan,
    thread_count: int,
    *,
    entries: Sequence[Entry] | None = None,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures every contestant at every batch size, in this process.

    Args:
        subject: The version.
        plan: Batch sizes, trials and budget.
        thread_count: Threads of this process; the caller has set them.
        entries: Who may take part, the first that does is the reference; None: everybody.
        say: Takes a line of progress.
    """
    taking_part = selected(all_entries(subject) if entries is None else entries, plan.entry_names)
    rows: list[Row] = []
    for batch_size in plan.batch_sizes:
        say(f"{subject.model}: batch {batch_size}, {thread_count} thread{'s' if thread_count > 1 else ''}")
        batches = random_batches(subject, batch_size, POOL_SIZE)
        rows += _BatchRun(subject, plan, thread_count, batches).measure(taking_part)
        _forget_compiled()
    return rows


@dataclass
class _BatchRun:
    """All contestants at one batch size."""

    subject: Subject
    plan: Plan
    thread_count: int
    batches: list[Batch]

    def measure(self, entries: Sequence[Entry]) -> list[Row]:
        prepared = [self._prepare(entry) for entry in entries]
        running = [(row, contestant) for row, contestant in prepared if contestant is not None]
        bounds = [entry.bound for entry, (_, made) in zip(entries, prepared, strict=True) if made is not None]
        checked = self._check(running, bounds)
        times = self._take_turns([contestant for _, contestant in running])
        measured = iter([_with_times(row, taken) for row, taken in zip(checked, times, strict=True)])
        return [row if contestant is None else next(measured) for row, contestant in prepared]

    def _prepare(self, entry: Entry) -> tuple[Row, Contestant | None]:
        size = len(next(iter(self.batches[0].values())))
        row = Row(entry.name, entry.device, size, self.thread_count, transfer=entry.transfer)
        if reason := entry.why_not(self.subject):
            return replace(row, skipped=reason), None
        contestant, memory = entry.make(self.subject, self.thread_count), PeakMemory()
        try:
            preparation = contestant.prepare(self.batches[0])
            started_s = time.perf_counter()
            contestant.run(self.batches[0])
        except Exception as error:  # a library that cannot compile or load here must not end the others' run
            return replace(row, skipped=_first_line(error)), None
        first_call_s = time.perf_counter() - started_s
        return replace(
            row,
            load_s=preparation.load_s,
            compile_s=preparation.compile_s,
            first_call_s=first_call_s,
            peak_memory_bytes=memory.growth_bytes(),
            nodes=preparation.nodes,
            fused_attention_count=preparation.fused_attention_count,
        ), contestant

    def _check(self, running: Sequence[tuple[Row, Contestant]], bounds: Sequence[float | None]) -> list[Row]:
        if not running:
            return []
        expected = [running[0][1].run(batch) for batch in self.batches]
        largest = max(float(np.abs(array).max(initial=1.0)) for outputs in expected for array in outputs)
        diffs = [_max_abs_diff(contestant, self.batches, expected) for _, contestant in running]
        return [
            replace(row, max_abs_diff=diff, agrees=diff <= max(_AGREEMENT * largest, bound or 0.0))
            for (row, _), diff, bound in zip(running, diffs, bounds, strict=True)
        ]

    def _take_turns(self, contestants: Sequence[Contestant]) -> list[Times]:
        """Gives (T, K) seconds for each contestant; every second trial goes through them backwards."""
        calls = [self._calls_per_trial(_warm_up(contestant, self.batches)) for contestant in contestants]
        times = [np.empty((self.plan.trials, count)) for count in calls]
        for trial in range(self.plan.trials):
            order = range(len(contestants)) if trial % 2 == 0 else reversed(range(len(contestants)))
            for index in order:
                _time_calls(contestants[index], self.batches, times[index][trial])
        return times

    def _calls_per_trial(self, call_s: float) -> int:
        wanted = -(-samples_for_percentile(0.99) // self.plan.trials)
        affordable = int(self.plan.budget_s / (self.plan.trials * max(call_s, 1e-9)))
        return max(1, min(wanted, affordable))


def _with_times(row: Row, times_s: Times) -> Row:
    return replace(
        row,
        trial_medians_s=tuple(np.median(times_s, axis=1).tolist()),
        p99_s=percentile(times_s.reshape(-1), 0.99),
        sample_count=times_s.size,
    )


def _time_calls(contestant: Contestant, batches: Sequence[Batch], times_s: Times) -> None:
    """Fills (K) with the time of each call; the garbage collector waits until the trial is over."""
    run = contestant.call if isinstance(contestant, ResidentContestant) else contestant.run
    clock, count = time.perf_counter, len(batches)
    for index in range(SETTLE_CALLS):
        run(batches[index % count])
    gc.collect()
    gc.disable()
    try:
        for index in range(len(times_s)):
            batch = batches[index % count]
            started_s = clock()
            run(batch)
            times_s[index] = clock() - started_s
    finally:
        gc.enable()


def _warm_up(contestant: Contestant, batches: Sequence[Batch]) -> float:
    """Runs until nothing is lazy any more; gives the time of a call."""
    calls, started_s = 0, time.perf_counter()
    while calls < _WARM_UP_CALLS or time.perf_counter() - started_s < _WARM_UP_S:
        contestant.run(batches[calls % len(batches)])
        calls += 1
    return (time.perf_counter() - started_s) / calls


def _max_abs_diff(contestant: Contestant, batches: Sequence[Batch], expected: Sequence[tuple[Array, ...]]) -> float:
    diffs = [
        float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
        for batch, outputs in zip(batches, expected, strict=True)
        for found, wanted in zip(contestant.run(batch), outputs, strict=True)
    ]
    return max(diffs, default=0.0)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _forget_compiled() -> None:
    """Drops torch's compiled graphs: those of another batch size would count against its limit of recompilations."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
