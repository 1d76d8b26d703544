"""The short table that the demo ends with."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.demo import DemoResult
from fitserve_benchmarks.quantities import duration, three_digits


def print_demo_report(result: DemoResult, console: Console) -> None:
    """Prints the table, and the ties where there are any."""
    table = Table(
        title="what the demo measured", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False
    )
    table.add_column(no_wrap=True)
    table.add_column()
    for name, figure in demo_lines(result):
        table.add_row(name, figure)
    console.print()
    console.print(table)


def demo_lines(result: DemoResult) -> Iterator[tuple[str, str]]:
    """Yields what is in the table: name and figure."""
    yield from _training_lines(result)
    yield from _verification_lines(result)
    yield from _answer_lines(result)
    for size in dict.fromkeys(row.batch_size for row in result.latency.rows):
        yield f"latency, batch {size}", _latency_text(result, size)
    for reason in sorted({row.skipped for row in result.latency.rows if row.skipped}):
        labels = dict.fromkeys(row.label for row in result.latency.rows if row.skipped == reason)
        yield "not measured", f"{', '.join(labels)}: {reason}"
    for wire in result.wire.rows:
        p99 = "" if wire.p99_s is None else f", p99 {duration(wire.p99_s)}"
        checked = f"{wire.checked_count - wire.wrong_count} of {wire.checked_count} answers checked right"
        failed = f", {wire.failed_count} FAILED" if wire.failed_count else ""
        yield (
            f"over the wire, {wire.in_flight} in flight",
            f"{three_digits(wire.requests_per_s)} requests/s, p50 {duration(wire.p50_s)}{p99}, {checked}{failed}",
        )


def _training_lines(result: DemoResult) -> Iterator[tuple[str, str]]:
    summary = result.summary
    compiled = summary["compile"]["used"]
    yield "data", summary["data"]["source"]
    yield (
        "training",
        f"{summary['examples_per_s']:,.0f} examples/s on {summary['device']}, torch.compile {compiled}",
    )
    yield "train accuracy", f"{summary['train_accuracy']:.4f}"
    yield "test accuracy", f"{summary['test_accuracy']:.4f}"


def _verification_lines(result: DemoResult) -> Iterator[tuple[str, str]]:
    for provider, figures in result.verification["providers"].items():
        outputs = [output for batch in figures["batches"] for output in batch["outputs"].values()]
        worst = max(outputs, key=lambda output: float(output["max_abs_diff"]))
        yield (
            "export verified",
            f"{provider}: max |onnxruntime − torch| {worst['max_abs_diff']:.1e}, "
            f"max |onnxruntime − float64| {max(output['ort_max_error'] for output in outputs):.1e} "
            f"(tolerance {worst['tolerance']:.1e})",
        )
        if agreement := figures.get("agreement"):
            same = f"{agreement['same_count']:,} of {agreement['example_count']:,} the same as torch's"
            yield "", f"{provider}: answers {same}, {agreement['tie_count']} ties"


def _answer_lines(result: DemoResult) -> Iterator[tuple[str, str]]:
    answers = result.answers
    low, high = answers.interval
    yield (
        "accuracy over gRPC",
        f"{answers.accuracy:.4f} ({low:.4f}–{high:.4f}): {answers.served_correct_count:,} of "
        f"{answers.example_count:,} right, torch {answers.torch_correct_count:,}; served by {result.provider}",
    )
    for tie in answers.ties:
        first, second = tie.classes
        yield "tie", f"example {tie.index}: torch class {first}, server {second}, {tie.gap:.1e} apart"


def _latency_text(result: DemoResult, batch_size: int) -> str:
    rows = [row for row in result.latency.rows if row.batch_size == batch_size and row.skipped is None]
    devices = {row.device for row in rows}
    return ", ".join(
        f"{row.contestant if devices == {'cpu'} else row.label} {'~ ' if row.is_unstable else ''}"
        f"{duration(row.median_s.estimate)}{'' if row.agrees else ' (ANSWERS DIFFER)'}"
        for row in rows
    )
