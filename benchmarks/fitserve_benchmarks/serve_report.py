"""The servers' benchmark for people: tables, and what came of the figures that are to be reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.quantities import duration, three_digits, times
from fitserve_benchmarks.serve_inprocess import IN_PROCESS
from fitserve_benchmarks.serve_large import LARGE
from fitserve_benchmarks.serve_rows import PoissonRow, ServeResult, ServeRow, rate_ratio
from fitserve_benchmarks.serve_servers import ECHO_AIO, ECHO_QUEUE, FAST, INLINE

_LARGE_BYTES = 20_000_000
"""In and out."""


def print_serve_report(result: ServeResult, console: Console) -> None:
    """Prints the tables, the ratios and how they came about."""
    for key, group in groupby(result.rows, key=lambda row: (row.model, row.batch_size)):
        console.print(_table(list(group), f"{key[0]}, batch {key[1]}"))
    if result.poisson:
        console.print(_poisson_table(result.poisson))
    for line in ratio_lines(result):
        console.print(line, highlight=False)
    for name, reason in result.absent.items():
        console.print(f"{name}: not measured, {reason}", highlight=False, markup=False)
    console.print(_method(result), highlight=False)


def ratio_lines(result: ServeResult) -> list[str]:
    """Says what `fitserve fast` did against the others, where both were measured."""
    model = result.rows[0].model if result.rows else ""
    lines = [*_rate_lines(result, model), *_single_lines(result, model), *_large_lines(result)]
    lines += [_tail(row, result.poisson) for row in result.poisson if row.contestant == FAST and row.p99_s is not None]
    lines += [_disturbance(row) for row in result.poisson if row.is_disturbed]
    return lines


def _tail(row: PoissonRow, rows: Sequence[PoissonRow]) -> str:
    said = f"{row.model}: Poisson arrivals at 70 % of capacity, p99 is {_tail_ratio(row)} times the median"
    floors = [other for other in rows if (other.model, other.contestant) == (row.model, ECHO_QUEUE)]
    return "; ".join((said, *(f"of the completion queue's echo at that rate {_tail_ratio(floor)}" for floor in floors)))


def _tail_ratio(row: PoissonRow) -> str:
    return "unknown" if row.p99_s is None else three_digits(row.p99_s / row.p50_s)


def _disturbance(row: PoissonRow) -> str:
    return (
        f"{row.model}, {row.contestant}: the client itself sent {duration(row.late_p50_s)} late at the median and "
        f"{duration(row.late_s)} at the 99th percentile, more than a tenth of what it measured: the latencies hold that"
    )


def _rate_lines(result: ServeResult, model: str) -> Iterator[str]:
    for row in result.rows:
        if row.contestant != FAST or row.model == LARGE:
            continue
        others = [INLINE, "mlserver", ECHO_AIO] if row.model == model and row.batch_size == 1 else [IN_PROCESS]
        for name in others:
            other = result.row(*row.key, name)
            ratio = None if other is None else rate_ratio(row, other)
            if ratio is not None:
                where = f"{row.model}, batch {row.batch_size}, {row.in_flight} in flight"
                yield f"{where}: {times(ratio)} the requests/s of {name}"


def _single_lines(result: ServeResult, model: str) -> Iterator[str]:
    found = [result.row(model, 1, 1, name) for name in (FAST, ECHO_QUEUE, IN_PROCESS)]
    fast, echo, runtime = found
    if fast is not None and echo is not None and runtime is not None:
        floor_s = echo.p50_s + runtime.p50_s
        ratio = three_digits(fast.p50_s / floor_s)
        yield (
            f"{model}: one in flight, median {duration(fast.p50_s)} is {ratio} times the completion queue's echo and "
            f"ONNX Runtime's own time together, {duration(floor_s)}"
        )


def _large_lines(result: ServeResult) -> Iterator[str]:
    for row in result.rows:
        other = result.row(*row.key, ECHO_AIO)
        if row.contestant == FAST and row.model == LARGE and other is not None:
            ratio = rate_ratio(row, other)
            speed = three_digits(row.requests_per_s * _LARGE_BYTES / 1e6)
            text = "" if ratio is None else f", {times(ratio)} the stock aio echo's"
            yield f"10 MB in, 10 MB out, {row.in_flight} in flight: {speed} MB/s{text}"


def _table(rows: Sequence[ServeRow], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("in flight", "contestant", "requests/s", "p50", "p99", "server CPU", "load CPU", "failed"):
        table.add_column(heading, justify="left" if heading == "contestant" else "right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: row.in_flight):
        for row in sorted(group, key=lambda row: -row.requests_per_s):
            table.add_row(*_cells(row))
        table.add_row()
    return table


def _cells(row: ServeRow) -> tuple[str, ...]:
    return (
        str(row.in_flight),
        row.contestant,
        ("~ " if row.is_unstable else "") + three_digits(row.requests_per_s),
        duration(row.p50_s),
        "" if row.p99_s is None else duration(row.p99_s),
        duration(row.cpu_per_request_s),
        f"{row.load_processor_share:.0%}" if row.contestant != IN_PROCESS else "",
        str(row.failed_count) if row.failed_count else "",
    )


def _poisson_table(rows: Sequence[PoissonRow]) -> Table:
    title = (
        "Poisson arrivals at 70 % of the requests/s of the same client at 32 in flight just before, batch 1; the echo "
        "under those of fitserve fast"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    counts = ("calls", "failed", "sent late", "load CPU")
    for heading in ("model", "contestant", "offered/s", "p50", "p99", "p99 ÷ p50", *counts):
        table.add_column(heading, justify="left" if heading in ("model", "contestant") else "right", no_wrap=True)
    for row in rows:
        p99 = ("", "") if row.p99_s is None else (duration(row.p99_s), three_digits(row.p99_s / row.p50_s))
        late = f"{duration(row.late_p50_s)}, p99 {duration(row.late_s)}"
        own = (("! " if row.is_disturbed else "") + late, duration(row.load_cpu_per_request_s))
        calls = (f"{row.sample_count:,}", str(row.failed_count))
        table.add_row(row.model, row.contestant, three_digits(row.rate), duration(row.p50_s), *p99, *calls, *own)
    return table


def _method(result: ServeResult) -> str:
    settings, environment = result.settings, result.environment
    checked = sum(check.checked_count for check in result.checks)
    wrong = sum(check.wrong_count for check in result.checks)
    before, after = (f"{average[0]:.1f}" for average in (environment["load_average"], result.load_average_after))
    peers = ", ".join(f"{name} {version}" for name, version in result.versions.items()) or "none"
    return (
        f"Everybody up at once and loaded in turns, {settings['turns']} of {settings['turn_s']} s each, by "
        f"{settings['load_source']} beside the servers; {settings['thread_count']} thread inside an operator, the CPU "
        f"provider, the same files; {IN_PROCESS}: sessions as the servers have them, without a server, with as many "
        f"callers as there are processors for their threads; {checked - wrong} of {checked} sampled answers right. "
        "Who begins changes from turn to turn. Server CPU is for a request; "
        f"~ marks rows whose turns differ by more than 10 %. {environment['processor']}, "
        f"{len(environment['usable_processors'])} processors for all; load average {before} before, {after} after. "
        f"Peers: {peers}."
    )
