"""The report of a GPU check: one JSON and one Markdown file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitserve_benchmarks.gpu_check import DONE
from fitserve_benchmarks.gpu_explanation import floor_lines
from fitserve_benchmarks.quantities import duration, three_digits
from fitserve_benchmarks.scenario_report import FIGURES, figure_text
from fitserve_benchmarks.scenario_rows import scenarios_from_json
from fitserve_benchmarks.scenarios import DIFFERENCES


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
    parts = [
        *_head(report),
        *_step_table(steps),
        *_train_lines(steps),
        *_rate_lines(steps),
        *_sentence_lines(steps),
        *_serve_lines(steps),
        *_latency_lines(steps),
        *_scenario_lines(steps),
        *floor_lines(_figures(steps, "floors"), _figures(steps, "latency").get("rows", [])),
    ]
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
    tests = _figures(steps, "tests")
    if tests:
        yield f"Tests marked needs_gpu: {tests['passed']} passed, {tests['skipped']} skipped."
        yield ""
    figures = _figures(steps, "train")
    if figures:
        plain = {name: value for name, value in figures.items() if isinstance(value, int | float | str)}
        kept = {name: value for name, value in plain.items() if not isinstance(value, bool)}
        yield "Training: " + ", ".join(f"{name} {_number(value)}" for name, value in kept.items()) + "."
        compiled = ", ".join(f"{name} {_number(value)}" for name, value in figures["compile"].items())
        yield f"Compiling: {compiled}."
        yield ""


def _rate_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    figures = _figures(steps, "training rate")
    if not figures:
        return
    floor = figures["floor"]
    yield (
        f"Training LeNet: {figures['examples_per_s']:,.0f} examples/s, {figures['share_of_target']:.0%} of the aim of "
        f"{figures['target_examples_per_s']:,.0f}. A step of {floor['batch_size']} takes "
        f"{duration(figures['step_s'])}; its floors are {duration(floor['bytes_s'])} by bytes over bandwidth and "
        f"{duration(floor['operations_s'])} by operations over rate (going back costs twice going forward)."
    )
    yield ""


def _sentence_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    figures = _figures(steps, "goemotions")
    if not figures:
        return
    anchors = ", ".join(f"{name} {value}" for name, value in figures["anchors"].items())
    yield f"GoEmotions, test split: macro-F1 {_number(figures.get('test_macro_f1', 'unknown'))} (published: {anchors})."
    yield ""


def _serve_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    served = _figures(steps, "serve")
    if not served:
        return
    answers = ", ".join(f"{name} {_number(value)}" for name, value in served["evaluated"].items())
    yield f"Served by {served['execution_provider']}: {answers}."
    yield ""
    yield "| calls in flight | requests/s | p50 | p99 | answers checked |"
    yield "|---|---|---|---|---|"
    for row in served["wire"]["rows"]:
        p99 = "" if row["p99_s"] is None else duration(row["p99_s"])
        right = f"{row['checked_count'] - row['wrong_count']} of {row['checked_count']} right"
        cells = (str(row["in_flight"]), three_digits(row["requests_per_s"]), duration(row["p50_s"]), p99, right)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _latency_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = _figures(steps, "latency").get("rows", [])
    if not rows:
        return
    yield "| contestant | device | transfer | batch | median | p99 | compile | memory | max abs diff | stable |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        if row["skipped"] is not None:
            continue
        yield "| " + " | ".join(map(str, _latency_cells(row))) + " |"
    yield ""
    for reason in sorted(
        {f"{row['contestant']} ({row['device']}): {row['skipped']}" for row in rows if row["skipped"]}
    ):
        yield f"- not measured: {reason}"
    yield ""


def _latency_cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    compiled = "" if row["compile_s"] is None else duration(row["compile_s"])
    memory = row["device_memory_bytes"] or row["peak_memory_bytes"]
    return (
        row["contestant"],
        row["device"],
        row["transfer"],
        row["batch_size"],
        duration(row["median_s"]["estimate"]),
        "" if row["p99_s"] is None else duration(row["p99_s"]),
        compiled,
        "" if memory is None else f"{memory / 1e6:.0f} MB",
        f"{row['max_abs_diff']:.1e}" + ("" if row["agrees"] else " differs"),
        "no" if row["is_unstable"] else "yes",
    )


def _scenario_lines(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = scenarios_from_json(_figures(steps, "latency").get("scenarios", []))
    measured = [row for row in rows if row.figure is not None]
    if not measured:
        return
    yield "| scenario | contestant | figure (95 %) | stable |"
    yield "|---|---|---|---|"
    for row in measured:
        stable = "no" if row.is_unstable else "yes"
        yield f"| {row.scenario}, {FIGURES[row.scenario]} | {row.label} | {figure_text(row)} | {stable} |"
    yield ""
    yield DIFFERENCES
    yield ""


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
