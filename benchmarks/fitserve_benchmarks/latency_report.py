"""A latency result for people: the tables and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.contestants import HOST_TO_HOST, REFERENCE
from fitserve_benchmarks.quantities import duration, duration_with_interval, three_digits, times
from fitserve_benchmarks.rows import LatencyResult, Row
from fitserve_benchmarks.statistics import samples_for_percentile


def print_report(result: LatencyResult, console: Console) -> None:
    """Prints the tables, how they came about and the verdict."""
    for thread_count, rows in _by_threads(result):
        console.print(latency_table(rows, f"{result.model} version {result.version}, {_threads(thread_count)}"))
        console.print(startup_table(rows, f"before the first answer, {_threads(thread_count)}"))
    for reason in sorted({f"{row.label}: not measured, {row.skipped}" for row in result.rows if row.skipped}):
        console.print(reason)
    console.print(method_text(result))
    console.print(verdict(result))


def report_console() -> Console:
    """Makes the console for reports: as wide as the terminal; into a file or a pipe as wide as the tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def latency_table(rows: Sequence[Row], title: str) -> Table:
    """Makes the table of steady-state latencies for rows of one thread count; skipped rows are left out."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("batch", "contestant", "median (95 %)", "p99", "× eager", "calls", "max |diff|"):
        justify: Literal["left", "right"] = "left" if heading == "contestant" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for _, group in _by_batch(rows):
        baseline = _baseline(group)
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
        memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f} MB"
        cells = (duration(row.load_s), compile_text, duration(row.first_call_s), memory, _nodes_text(row))
        table.add_row(str(row.batch_size), row.label, *cells)
    return table


def _nodes_text(row: Row) -> str:
    places = [f"{count} {provider.removesuffix('ExecutionProvider')}" for provider, count in row.nodes.items()]
    fused = [f"{row.fused_attention_count} fused attention"] if row.fused_attention_count else []
    return ", ".join(places + fused)


def method_text(result: LatencyResult) -> str:
    """Says how the figures came about."""
    settings, environment = result.settings, result.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"Host to host, numpy in and out, but for rows on the device; "
        f"contestants in turns, {settings['trials']} trials each; median of the "
        f"trials' medians with its bootstrap interval; p99 where there are {samples_for_percentile(0.99):,} calls or "
        f"more (± 0.5 points); ~ marks a row whose last three windows differ by more than 10 %; max |diff| against "
        f"{result.reference}. {environment['processor']}, {len(environment['usable_processors'])} processors, "
        f"{', '.join(environment['gpus']) or 'no GPU'}; Python {environment['python']}, {versions}."
    )


def verdict(result: LatencyResult) -> str:
    """Says in one paragraph who is the fastest where, by how much, and what to doubt."""
    sentences = [text for count, rows in _by_threads(result) for text in _thread_sentences(count, rows)]
    measured = [row for row in result.rows if row.skipped is None]
    unstable = sum(row.is_unstable for row in measured)
    if unstable:
        sentences.append(f"{unstable} of {len(measured)} rows were unstable: read those figures with care.")
    wrong = sorted({row.label for row in measured if not row.agrees})
    if wrong:
        sentences.append(f"The answers of {', '.join(wrong)} differ from {result.reference}: its times prove nothing.")
    elif measured:
        worst = max(row.max_abs_diff for row in measured)
        sentences.append(f"All answers agree with {result.reference}, to {worst:.1e}.")
    return " ".join(sentences) or "Nothing was measured."


def _thread_sentences(thread_count: int, rows: Sequence[Row]) -> Iterator[str]:
    """Yields a sentence for each stretch of batch sizes with the same winner."""
    host_rows = [row for row in rows if row.transfer == HOST_TO_HOST]
    contests = [group for _, group in _by_batch(host_rows) if len(group) > 1]
    lead = f"With {_threads(thread_count)}, at"
    for winner, stretch in groupby(contests, key=_winner):
        groups = list(stretch)
        sizes = [group[0].batch_size for group in groups]
        where = f"batch {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
        yield f"{lead} {where} {_contest_text(winner, groups)}."
        lead = "At"


def _contest_text(winner: str | None, groups: Sequence[Sequence[Row]]) -> str:
    if winner is None:
        return "nobody is clearly the fastest: " + "; ".join(map(_level_text, groups))
    first, *others = sorted(groups[0], key=_median)
    against = " and ".join(f"{times(first.times_as_fast_as(other))} as fast as {other.label}" for other in others)
    at_first = f"at batch {groups[0][0].batch_size} " if len(groups) > 1 else ""
    return f"{winner} is the fastest: {at_first}{duration(_median(first))}, {against}"


def _level_text(group: Sequence[Row]) -> str:
    first, second = sorted(group, key=_median)[:2]
    ratio = times(first.times_as_fast_as(second))
    return f"at batch {first.batch_size} {first.label} is {ratio} as fast as {second.label}"


def _winner(group: Sequence[Row]) -> str | None:
    """Names the fastest; None where the interval of its lead over the next one holds 1."""
    first, second = sorted(group, key=_median)[:2]
    return first.label if first.times_as_fast_as(second).low > 1 else None


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


def _baseline(group: Sequence[Row]) -> Row | None:
    """The eager module on the CPU."""
    return next((row for row in group if row.contestant == REFERENCE and row.device == "cpu"), None)


def _by_threads(result: LatencyResult) -> list[tuple[int, list[Row]]]:
    return [(count, list(rows)) for count, rows in groupby(result.rows, key=lambda row: row.thread_count)]


def _by_batch(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    measured = [row for row in rows if row.skipped is None]
    return [(size, list(group)) for size, group in groupby(measured, key=lambda row: row.batch_size)]


def _median(row: Row) -> float:
    return row.median_s.estimate


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")
