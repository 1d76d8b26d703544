"""The comparison of two checkouts for people: a table, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from fitserve_benchmarks.quantities import duration, three_digits
from fitserve_benchmarks.serve_pairs import LEAST_RATIO, AgainstResult, PairedRow, SideTurn
from fitserve_benchmarks.statistics import sign_test_rank

_HEADINGS: Final = (
    *("in flight", "ours/s", "other/s", "ratio", "95 % interval", "ours CPU", "other CPU", "failed", "verdict"),
)


def print_against_report(result: AgainstResult, console: Console) -> None:
    """Prints a table for each model and batch size, both commits, and the method."""
    for (model, batch_size), rows in groupby(result.rows, key=lambda row: (row.model, row.batch_size)):
        table = Table(title=f"{model}, batch {batch_size}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in _HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*_cells(row))
        console.print(table)
    for line in against_lines(result):
        console.print(line, highlight=False, markup=False)


def against_lines(result: AgainstResult) -> list[str]:
    """Returns what stands below the table."""
    checked = sum(check.checked_count for check in result.checks)
    wrong = sum(check.wrong_count for check in result.checks)
    return [
        f"ours:  {_commit(result.ours)}",
        f"other: {_commit(result.other)}",
        f"answers: {checked - wrong} of {checked} sampled right",
        _conclusion(result),
        _method(result),
    ]


def _cells(row: PairedRow) -> tuple[str, ...]:
    ours, other = [pair.ours for pair in row.pairs], [pair.other for pair in row.pairs]
    interval = row.interval
    return (
        str(row.in_flight),
        three_digits(median(turn.rate for turn in ours)),
        three_digits(median(turn.rate for turn in other)),
        f"{row.median_ratio:.3f}",
        "" if interval is None else f"{interval.low:.3f}–{interval.high:.3f}",
        _cpu(ours),
        _cpu(other),
        str(row.failed_count) if row.failed_count else "",
        row.verdict,
    )


def _cpu(turns: list[SideTurn]) -> str:
    return duration(median(turn.cpu_per_request_s for turn in turns))


def _commit(description: Mapping[str, Any]) -> str:
    commit, subject = description["commit"] or "no commit", description["subject"]
    return " ".join((commit[:12], *(("with changes",) if description["is_changed"] else ()), subject)).rstrip()


def _conclusion(result: AgainstResult) -> str:
    slower = [
        f"{row.model}, batch {row.batch_size}, {row.in_flight} in flight"
        for row in result.rows
        if row.verdict == "slower"
    ]
    if slower:
        return f"FAILED: the whole interval lies below {LEAST_RATIO} at {'; '.join(slower)}"
    if any(row.interval is None for row in result.rows):
        return "no verdict: fewer than 6 pairs have no interval at 95 %; give --pairs 15"
    return f"no level's whole interval lies below {LEAST_RATIO}"


def _method(result: AgainstResult) -> str:
    settings, environment = result.settings, result.environment
    count = settings["pairs"]
    rank = sign_test_rank(count)
    bounds = f" (values {rank} and {count + 1 - rank} of {count} in order)" if rank else ""
    before, after = (f"{average[0]:.1f}" for average in (environment["load_average"], result.load_average_after))
    return (
        f"Both servers up at once, transport {settings['transport']}, loaded one at a time by "
        f"{settings['load_source']} in {count} pairs of turns of {settings['turn_s']} s for each level; who begins "
        "changes from pair to pair. Ratio: median of the pairwise ratios of requests/s, ours against the other, with "
        "the interval of the sign test at 95 % or more"
        f"{bounds}. CPU: processor time of a server's processes for a request, the median of the turns. "
        f"{settings['thread_count']} thread inside an operator. {environment['processor']}, "
        f"{len(environment['usable_processors'])} processors for all; load average {before} before, {after} after."
    )
