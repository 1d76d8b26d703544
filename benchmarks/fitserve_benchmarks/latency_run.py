"""A whole latency run: every thread setting in turn, the result as JSON and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fitserve_benchmarks.contest import POOL_SIZE
from fitserve_benchmarks.contestants import SPINNING
from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.latency import measure_in_process
from fitserve_benchmarks.latency_plan import Measured, Plan
from fitserve_benchmarks.latency_plot import plot_latency, plot_scenarios
from fitserve_benchmarks.rows import LatencyResult
from fitserve_benchmarks.subject import SubjectError, highest_version
from fitserve_benchmarks.threads import ThreadSetting
from fitserve_benchmarks.timing import SETTLE_CALLS


def run_latency(
    plan: Plan, settings: Sequence[ThreadSetting], output_dir: Path
) -> tuple[LatencyResult, tuple[Path, ...]]:
    """Measures a plan with each thread setting and writes `latency-<model>.json` and `.svg`.

    Where scenarios were measured, `scenarios-<model>.svg` shows them.

    Args:
        plan: What is measured.
        settings: Thread settings, at least one.
        output_dir: Folder for the files; made where it is not there.

    Returns:
        The result and the files written.

    Raises:
        SubjectError: the plan's subject cannot be measured, or nothing could take part.
        WorkerFailedError: a measuring process died.
    """
    version = plan.version or highest_version(Path(plan.repository), plan.model)
    environment = describe_environment()
    pinned = replace(plan, version=version)
    found = Measured()
    for setting in settings:
        found += measure_in_process(pinned, setting)
    measured = [row for row in found.rows if row.skipped is None]
    if not measured:
        raise SubjectError(f"model '{plan.model}': expected a contestant that runs, got none: {found.rows[0].skipped}")
    record = {
        **asdict(pinned),
        # Results are passed on, and where somebody's files lie is nobody else's business.
        "repository": Path(plan.repository).name,
        "run_dir": None if plan.run_dir is None else Path(plan.run_dir).name,
        "threads": [asdict(setting) for setting in settings],
        "spinning": SPINNING,
        "input_batches": POOL_SIZE,
        "settle_calls": SETTLE_CALLS,
        "tf32": "off",
    }
    result = LatencyResult(plan.model, version, measured[0].label, record, environment, found.rows, found.scenarios)
    return result, _written(result, output_dir)


def _written(result: LatencyResult, output_dir: Path) -> tuple[Path, ...]:
    """Writes the result; gives the files."""
    paths = output_dir / f"latency-{result.model}.json", output_dir / f"latency-{result.model}.svg"
    result.save(paths[0])
    plot_latency(result, paths[1])
    if all(row.figure is None for row in result.scenarios):
        return paths
    scenario_path = output_dir / f"scenarios-{result.model}.svg"
    plot_scenarios(result, scenario_path)
    return (*paths, scenario_path)
