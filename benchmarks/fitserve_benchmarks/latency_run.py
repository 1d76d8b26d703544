"""A whole latency run: every thread setting in turn, the result as JSON and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fitserve_benchmarks.contestants import SPINNING
from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.latency import POOL_SIZE, SETTLE_CALLS, Plan, measure_in_process
from fitserve_benchmarks.latency_plot import plot_latency
from fitserve_benchmarks.rows import LatencyResult
from fitserve_benchmarks.subject import SubjectError, highest_version
from fitserve_benchmarks.threads import ThreadSetting


def run_latency(
    plan: Plan, settings: Sequence[ThreadSetting], output_dir: Path
) -> tuple[LatencyResult, tuple[Path, Path]]:
    """Measures a plan with each thread setting and writes `latency-<model>.json` and `.svg`.

    Args:
        plan: What is measured.
        settings: Thread settings, at least one.
        output_dir: Folder for the two files; made where it is not there.

    Returns:
        The result and the files written.

    Raises:
        SubjectError: the plan's subject cannot be measured, or nothing could take part.
        WorkerFailedError: a measuring process died.
    """
    version = plan.version or highest_version(Path(plan.repository), plan.model)
    environment = describe_environment()
    pinned = replace(plan, version=version)
    rows = tuple(row for setting in settings for row in measure_in_process(pinned, setting))
    measured = [row for row in rows if row.skipped is None]
    if not measured:
        raise SubjectError(f"model '{plan.model}': expected a contestant that runs, got none: {rows[0].skipped}")
    record = {
        **asdict(pinned),
        "threads": [asdict(setting) for setting in settings],
        "spinning": SPINNING,
        "input_batches": POOL_SIZE,
        "settle_calls": SETTLE_CALLS,
    }
    result = LatencyResult(plan.model, version, measured[0].label, record, environment, rows)
    paths = output_dir / f"latency-{plan.model}.json", output_dir / f"latency-{plan.model}.svg"
    result.save(paths[0])
    plot_latency(result, paths[1])
    return result, paths
