"""Times contestants against each other: in turns, with every answer checked first.

Each thread count runs in a process of its own (`measure_in_process`), because thread pools and compiled kernels read it
once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fitserve_benchmarks.compiler_cache import CACHE_VARIABLE
from fitserve_benchmarks.contest import POOL_SIZE, Contest
from fitserve_benchmarks.contestants import Entry
from fitserve_benchmarks.further_contestants import all_entries, selected
from fitserve_benchmarks.latency_plan import Measured, Plan
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.rows import rows_from_json
from fitserve_benchmarks.scenario_rows import scenarios_from_json
from fitserve_benchmarks.subject import Subject, SubjectError, random_batches
from fitserve_benchmarks.threads import ThreadSetting


class WorkerFailedError(RuntimeError):
    """The measuring process died; what it had to say is on stderr."""


def measure_in_process(plan: Plan, setting: ThreadSetting) -> Measured:
    """Measures a plan with one thread setting, in a process that has it from its start.

    Its compiler cache is empty, and each contestant has one of its own: compile times are those of a first compilation.

    Raises:
        WorkerFailedError: the process ended without rows.
        SubjectError: the subject cannot be measured.
    """
    work = json.dumps({"plan": asdict(plan), "setting": asdict(setting)})
    command = [sys.executable, "-m", "fitserve_benchmarks.latency_worker"]
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as folder:
        environment = {**setting.environment(), CACHE_VARIABLE: folder}
        answer = Path(folder, "rows.json")
        exit_code, _ = run_child([*command, str(answer)], environment=environment, message=work.encode())
        if exit_code != 0 or not answer.is_file():
            raise WorkerFailedError(f"measuring process: expected exit code 0, got {exit_code}")
        document = json.loads(answer.read_text())
    if error := document.get("error"):
        raise SubjectError(error)
    return Measured(rows_from_json(document["rows"]), scenarios_from_json(document["scenarios"]))


def measure(
    subject: Subject,
    plan: Plan,
    thread_count: int,
    *,
    entries: Sequence[Entry] | None = None,
    say: Callable[[str], None],
) -> Measured:
    """Measures every contestant at every batch size and in every scenario, in this process.

    Args:
        subject: The version.
        plan: Batch sizes, scenarios, trials and budget.
        thread_count: Threads of this process; the caller has set them.
        entries: Who may take part, the first that does is the reference; None: everybody.
        say: Takes a line of progress.
    """
    taking_part = selected(all_entries(subject) if entries is None else entries, plan.entry_names)
    contest = Contest(subject, plan, thread_count, taking_part, say)
    measured = Measured()
    for batch_size in dict.fromkeys((*plan.batch_sizes, *(one.batch_size for one in plan.wanted_scenarios))):
        say(f"{subject.model}: batch {batch_size}, {thread_count} thread{'s' if thread_count > 1 else ''}")
        measured += contest.at(batch_size, random_batches(subject, batch_size, POOL_SIZE))
        _forget_compiled()
    return measured


def _forget_compiled() -> None:
    """Drops torch's compiled graphs: those of another batch size would count against its limit of recompilations."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
