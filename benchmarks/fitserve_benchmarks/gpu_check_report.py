"""The report of a GPU check: one JSON and one Markdown file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitserve_benchmarks.gpu_check import DONE
from fitserve_benchmarks.quantities import duration, three_digits


def save_report(report: Mapping[str, Any], output_dir: Path) -> tuple[Path, Path]:
    """Writes `gpu-check-<gpu>.json` and `.md`; a rehearsal, or a check without a GPU, has that in its name.

    Returns:
        The files written.
    """
    stem = f"gpu-check-{_hardware(report)}"
    paths = output_dir / f"{stem}.json", output_dir / f"{stem}.md"
    output_dir.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    paths[1].write_text(report_text(report))
    return paths


def report_text(report: Mapping[str, Any]) -> str:
    """Writes the report as Markdown: what was run on what, what was not and why, and the figures."""
    steps = {step["name"]: step for step in report["steps"]}
    parts = [*_head(report), *_step_table(steps), *_train_lines(steps), *_latency_lines(steps), *_floor_lines(steps)]
    return "\n".join(parts) + "\n"


def _hardware(report: Mapping[str, Any]) -> str:
    if report["is_rehearsal"]:
        return "rehearsal"
    gpus = report["environment"]["gpus"]
    name = gpus[0].split(",")[0] if gpus else "no-gpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    environment = report["environment"]
    yield "# GPU check"
    yield ""
    if report["is_rehearsal"]:
        yield "**A rehearsal on the CPU: it shows that the steps work, and says nothing about any GPU.**"
        yield ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    yield f"{'; '.join(environment['gpus']) or 'No GPU'}. {environment['processor']}, "
    yield f"{len(environment['usable_processors'])} processors. {environment['platform']}, "
    yield f"Python {environment['python']}, {versions}. Measured at {environment['measured_at']}."
    yield ""


def _step_table(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| step | state | time | why not |"
    yield "|---|---|---|---|"
    for name, step in steps.items():
        took = f"{step['duration_s']:.1f} s" if step["state"] == DONE else ""
        reason = step["reason"].replace("|", "/").replace("\n", " ")
        yield f"| {name} | {step['state']} | {took} | {reason} |"
    yield ""


def _figures(steps: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    step = steps.get(name, {})
    return step.get("figures", {}) if step.get("state") == DONE else {}


def _train_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    figures = _figures(steps, "train")
    if figures:
        kept = {name: value for name, value in figures.items() if not isinstance(value, bool)}
        yield "Training, compiled: " + ", ".join(f"{name} {_number(value)}" for name, value in kept.items()) + "."
        yield ""
    served = _figures(steps, "serve")
    if served:
        answers = ", ".join(f"{name} {_number(value)}" for name, value in served["evaluated"].items())
        yield f"Served by {served['execution_provider']}: {answers}."
        yield ""


def _latency_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = _figures(steps, "latency").get("rows", [])
    if not rows:
        return
    yield "| contestant | device | batch | median | p99 | max abs diff | stable |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        if row["skipped"] is not None:
            continue
        p99 = "" if row["p99_s"] is None else duration(row["p99_s"])
        median = duration(row["median_s"]["estimate"])
        stable = "no" if row["is_unstable"] else "yes"
        cells = (row["contestant"], row["device"], row["batch_size"], median, p99, f"{row['max_abs_diff']:.1e}", stable)
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""
    for reason in sorted(
        {f"{row['contestant']} ({row['device']}): {row['skipped']}" for row in rows if row["skipped"]}
    ):
        yield f"- not measured: {reason}"
    yield ""


def _floor_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    figures = _figures(steps, "floors")
    if not figures:
        return
    rates = figures["rates"]
    yield (
        f"Floors of a call on {rates['device']}, by rates measured in this run: "
        f"{three_digits(rates['bytes_per_s'] / 1e9)} GB/s copying, "
        f"{three_digits(rates['operations_per_s'] / 1e12)} TFLOP/s fp32, "
        f"{duration(rates['launch_s'])} for a launch that is waited for."
    )
    yield ""
    yield "| batch | bytes / bandwidth | operations / rate |"
    yield "|---|---|---|"
    for floor in figures["floors"]:
        yield f"| {floor['batch_size']} | {duration(floor['bytes_s'])} | {duration(floor['operations_s'])} |"
    yield ""
    yield "A call far above both floors is bound by launches and copies between host and device, not by the arithmetic."


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
