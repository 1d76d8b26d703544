"""Scenarios for people: the table, and a sentence for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.table import Table

from fitserve_benchmarks.contestants import REFERENCE
from fitserve_benchmarks.quantities import (
    duration,
    duration_with_interval,
    rate_with_interval,
    threads_text,
    three_digits,
)
from fitserve_benchmarks.scenario_rows import MULTI_STREAM, OFFLINE, SERVER, SINGLE_STREAM, ScenarioRow
from fitserve_benchmarks.statistics import Interval

FIGURES: Final = {
    SINGLE_STREAM: "p90",
    MULTI_STREAM: "p99",
    SERVER: "queries/s",
    OFFLINE: "examples/s",
}
"""What each scenario's figure is."""


def scenario_table(rows: Sequence[ScenarioRow], title: str) -> Table:
    """Makes the table for rows of one thread count; skipped rows are left out."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("scenario", "contestant", "figure (95 %)", "× eager", "queries", "max |diff|"):
        is_text = heading in ("scenario", "contestant")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for _, group in _by_scenario(rows):
        baseline = _baseline(group)
        for row in group:
            table.add_row(*_cells(row, baseline))
        table.add_row()
    return table


def scenario_sentences(rows: Sequence[ScenarioRow]) -> Iterator[str]:
    """Yields a sentence for each thread count and scenario that more than one contestant took part in."""
    for count, of_count in groupby(rows, key=lambda row: row.thread_count):
        for scenario, group in _by_scenario(list(of_count)):
            if len(group) > 1:
                yield f"{scenario}, {threads_text(count)}: {_sentence(group)}."


def figure_text(row: ScenarioRow) -> str:
    """Writes a figure with its interval, in its own unit."""
    return rate_with_interval(row.measured) if row.is_rate else duration_with_interval(row.measured)


def _sentence(group: Sequence[ScenarioRow]) -> str:
    first, second, *_ = sorted(group, key=_best_first)
    is_level = _overlap(first.measured, second.measured)
    text = f"{first.label} leads with {_estimate(first)}" if not is_level else _level_text(first, second)
    baseline = _baseline(group)
    if baseline is None or baseline in (first, second if is_level else first):
        return text if is_level else f"{text}, {_times_text(first, second)}"
    return f"{text}, {_times_text(first, baseline)}"


def _level_text(first: ScenarioRow, second: ScenarioRow) -> str:
    return f"{first.label} with {_estimate(first)} and {second.label} with {_estimate(second)} are level"


def _times_text(row: ScenarioRow, other: ScenarioRow) -> str:
    kind = "the rate of" if row.is_rate else "as fast as"
    return f"{three_digits(row.times_as_good_as(other))}× {kind} {other.label}"


def _estimate(row: ScenarioRow) -> str:
    figure = row.measured.estimate
    return (
        f"{three_digits(figure)} {FIGURES[row.scenario]}"
        if row.is_rate
        else f"a {FIGURES[row.scenario]} of {duration(figure)}"
    )


def _best_first(row: ScenarioRow) -> float:
    return -row.measured.estimate if row.is_rate else row.measured.estimate


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


def _cells(row: ScenarioRow, baseline: ScenarioRow | None) -> tuple[str, ...]:
    is_baseline = baseline is None or row.label == baseline.label
    return (
        f"{row.scenario}, {FIGURES[row.scenario]}",
        row.label,
        ("~ " if row.is_unstable else "") + figure_text(row),
        "" if is_baseline or baseline is None else three_digits(row.times_as_good_as(baseline)),
        f"{row.query_count:,}",
        f"{row.max_abs_diff:.1e}" + ("" if row.agrees else " differs"),
    )


def _baseline(group: Sequence[ScenarioRow]) -> ScenarioRow | None:
    return next((row for row in group if row.contestant == REFERENCE and row.device == "cpu"), None)


def _by_scenario(rows: Sequence[ScenarioRow]) -> list[tuple[str, list[ScenarioRow]]]:
    measured = [row for row in rows if row.figure is not None]
    names = dict.fromkeys(row.scenario for row in measured)
    return [(name, [row for row in measured if row.scenario == name]) for name in names]
