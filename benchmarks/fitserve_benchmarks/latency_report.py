"""A latency result for people: the tables, how they came about, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.contestants import DEVICE_TO_DEVICE, HOST_TO_HOST
from fitserve_benchmarks.latency_verdict import baseline_of, by_batch, by_threads, verdict
from fitserve_benchmarks.quantities import duration, duration_with_interval, threads_text, three_digits
from fitserve_benchmarks.rows import LatencyResult, Row
from fitserve_benchmarks.scenario_report import scenario_table
from fitserve_benchmarks.scenarios import DIFFERENCES, SINGLE_STREAM_ERROR
from fitserve_benchmarks.statistics import samples_for_percentile


def print_report(result: LatencyResult, console: Console) -> None:
    """Prints the tables, how they came about and the verdict."""
    for thread_count, rows in by_threads(result):
        for table in _tables(result, thread_count, rows):
            console.print(table)
    for reason in sorted(set(_reasons(result))):
        console.print(reason)
    console.print(method_text(result))
    if result.scenarios:
        console.print(scenario_text(result))
    console.print(verdict(result))


def _tables(result: LatencyResult, thread_count: int, rows: Sequence[Row]) -> Iterator[Table]:
    """Yields the tables of one thread count; what stays on a device has its own, for copies are a part of the other."""
    threads = threads_text(thread_count)
    for transfer in (HOST_TO_HOST, DEVICE_TO_DEVICE):
        kept = [row for row in rows if row.transfer == transfer and row.skipped is None]
        if kept:
            yield latency_table(kept, f"{result.model} version {result.version}, {threads}, {transfer}")
    yield startup_table(rows, f"before the first answer, {threads}")
    scenarios = [row for row in result.scenarios if row.thread_count == thread_count]
    if any(row.figure is not None for row in scenarios):
        yield scenario_table(scenarios, f"scenarios, {threads}")


def _reasons(result: LatencyResult) -> Iterator[str]:
    """Yields why rows and scenarios were not measured; a row's reason is not repeated for each scenario."""
    yield from (f"{row.label}: not measured, {row.skipped}" for row in result.rows if row.skipped)
    known = {(row.label, row.skipped) for row in result.rows}
    for scenario in result.scenarios:
        if scenario.skipped and (scenario.label, scenario.skipped) not in known:
            threads = threads_text(scenario.thread_count)
            yield f"{scenario.label}, {scenario.scenario}, {threads}: not measured, {scenario.skipped}"


def report_console() -> Console:
    """Makes the console for reports: as wide as the terminal; into a file or a pipe as wide as the tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def latency_table(rows: Sequence[Row], title: str) -> Table:
    """Makes the table of steady-state latencies for rows of one thread count; skipped rows are left out."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("batch", "contestant", "median (95 %)", "p99", "× eager", "calls", "max |diff|"):
        justify: Literal["left", "right"] = "left" if heading == "contestant" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for _, group in by_batch(rows):
        baseline = baseline_of(group)
        for row in group:
            table.add_row(*_latency_cells(row, baseline))
        table.add_row()
    return table


def startup_table(rows: Sequence[Row], title: str) -> Table:
    """Makes the table of what came before steady state: times, the peak of memory it added, where nodes were placed.

    Skipped rows are left out.
    """
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("batch", "contestant", "load", "compile", "first call", "memory", "nodes"):
        table.add_column(heading, justify="left" if heading in ("contestant", "nodes") else "right")
    for row in (row for row in rows if row.skipped is None):
        compile_text = "" if row.compile_s is None else duration(row.compile_s)
        cells = (duration(row.load_s), compile_text, duration(row.first_call_s), _memory_text(row), _nodes_text(row))
        table.add_row(str(row.batch_size), row.label, *cells)
    return table


def _memory_text(row: Row) -> str:
    host = [] if row.peak_memory_bytes is None else [f"{row.peak_memory_bytes / 1e6:.0f} MB"]
    device = [] if row.device_memory_bytes is None else [f"{row.device_memory_bytes / 1e6:.0f} MB GPU"]
    return " + ".join(host + device)


def _nodes_text(row: Row) -> str:
    places = [f"{count} {provider.removesuffix('ExecutionProvider')}" for provider, count in row.nodes.items()]
    fused = [f"{row.fused_attention_count} fused attention"] if row.fused_attention_count else []
    return ", ".join(places + fused)


def method_text(result: LatencyResult) -> str:
    """Says how the figures came about."""
    settings, environment = result.settings, result.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"Host to host: numpy in and out; device to device: inputs and outputs stay there; "
        f"contestants in turns, {settings['trials']} trials each; median of the "
        f"trials' medians with its bootstrap interval; p99 where there are {samples_for_percentile(0.99):,} calls or "
        f"more (± 0.5 points); ~ marks a row whose last three windows differ by more than 10 %; max |diff| against "
        f"{result.reference}. {environment['processor']}, {len(environment['usable_processors'])} processors, "
        f"{', '.join(environment['gpus']) or 'no GPU'}; Python {environment['python']}, {versions}."
    )


def scenario_text(result: LatencyResult) -> str:
    """Says how the scenarios' figures came about, and in what they are not MLPerf's."""
    bound_ms = 1e3 * result.settings["server_bound_s"]
    needed = samples_for_percentile(0.9, SINGLE_STREAM_ERROR)
    return (
        f"SingleStream: back-to-back queries of 1 example, p90 of {needed:,} or more (± 1 point). MultiStream: of 8 "
        f"examples, p99 of {samples_for_percentile(0.99):,} or more. Server: the largest rate of a Poisson process at "
        f"which 99 of 100 queries of 1 example end within {bound_ms:g} ms of when they were due. Offline: a bag of "
        f"examples, all there at the start. {DIFFERENCES}"
    )


def _latency_cells(row: Row, baseline: Row | None) -> tuple[str, ...]:
    is_baseline = baseline is None or row.label == baseline.label
    return (
        str(row.batch_size),
        row.label,
        ("~ " if row.is_unstable else "") + duration_with_interval(row.median_s),
        "" if row.p99_s is None else duration(row.p99_s),
        "" if is_baseline or baseline is None else three_digits(row.times_as_fast_as(baseline).estimate),
        f"{row.sample_count:,}",
        f"{row.max_abs_diff:.1e}" + ("" if row.agrees else " differs"),
    )
