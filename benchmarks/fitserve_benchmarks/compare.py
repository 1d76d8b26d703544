"""Two latency results side by side: which rows became faster, and what else changed between the runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table

from fitserve_benchmarks.quantities import duration_with_interval, rate_with_interval, three_digits
from fitserve_benchmarks.rows import LatencyResult, Row
from fitserve_benchmarks.scenario_rows import ScenarioRow
from fitserve_benchmarks.statistics import Interval

_COMPARED_FACTS: Final = (
    "processor",
    "usable_processors",
    "gpus",
    "python",
    "platform",
    "compiler",
    "variables",
    "packages",
)


@dataclass(frozen=True, slots=True)
class Change:
    """A row of both results, a latency or a scenario.

    Args:
        place: Threads, and batch size or scenario, as printed.
        label: Contestant and device.
        old: Figure of the first result: seconds, or a rate.
        new: Figure of the second.
        is_rate: More is better.
        is_unstable: One of the rows is.
    """

    place: tuple[str, str]
    label: str
    old: Interval
    new: Interval
    is_rate: bool = False
    is_unstable: bool = False

    @property
    def times_as_fast(self) -> float:
        """How many times as good the new figure is: above 1 it is faster, or more."""
        old, new = self.old.estimate, self.new.estimate
        return new / old if self.is_rate else old / new

    @property
    def verdict(self) -> str:
        """Says `faster`, `slower`, or `level` where the intervals overlap; `unstable` where a row is."""
        if self.is_unstable:
            return "unstable"
        if self.new.low <= self.old.high and self.old.low <= self.new.high:
            return "level"
        return "faster" if self.times_as_fast > 1 else "slower"


def changes(old: LatencyResult, new: LatencyResult) -> list[Change]:
    """Pairs the rows and scenarios that both results measured, in the order of the new one."""
    rows = {_row_key(row): row for row in old.rows if row.skipped is None}
    scenarios = {_scenario_key(row): row for row in old.scenarios if row.figure is not None}
    return [
        *(_row_change(rows[_row_key(row)], row) for row in new.rows if row.skipped is None and _row_key(row) in rows),
        *(
            _scenario_change(scenarios[_scenario_key(row)], row)
            for row in new.scenarios
            if row.figure is not None and _scenario_key(row) in scenarios
        ),
    ]


def unlike(old: LatencyResult, new: LatencyResult) -> list[str]:
    """Lists what differs between the runs beside the rows, one sentence each: it may be why they differ."""
    sides = (old.environment, new.environment)
    found = [
        sentence for name in _COMPARED_FACTS for sentence in _difference(name, *(side.get(name) for side in sides))
    ]
    if old.scenarios and new.scenarios:
        found += _difference("server_bound_s", *(side.settings.get("server_bound_s") for side in (old, new)))
    if (old.model, old.version) != (new.model, new.version):
        found.append(f"model: {old.model} version {old.version} before, {new.model} version {new.version} now")
    return found


def change_table(pairs: list[Change]) -> Table:
    """Makes the table of changes."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("threads", "batch", "contestant", "before", "now", "× as fast", ""):
        table.add_column(heading, justify="left" if heading in ("contestant", "") else "right", no_wrap=True)
    for pair in pairs:
        text = rate_with_interval if pair.is_rate else duration_with_interval
        table.add_row(
            *pair.place, pair.label, text(pair.old), text(pair.new), three_digits(pair.times_as_fast), pair.verdict
        )
    return table


def _row_change(old: Row, new: Row) -> Change:
    place = (str(new.thread_count), str(new.batch_size))
    return Change(place, new.label, old.median_s, new.median_s, is_unstable=old.is_unstable or new.is_unstable)


def _scenario_change(old: ScenarioRow, new: ScenarioRow) -> Change:
    place = (str(new.thread_count), new.scenario)
    return Change(place, new.label, old.measured, new.measured, new.is_rate, old.is_unstable or new.is_unstable)


def _row_key(row: Row) -> tuple[str, int, int]:
    return (row.label, row.batch_size, row.thread_count)


def _scenario_key(row: ScenarioRow) -> tuple[str, str, int, int]:
    return (row.label, row.scenario, row.batch_size, row.thread_count)


def _difference(name: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _difference(key, before.get(key), now.get(key))
    elif before != now:
        yield f"{name}: {_shown(before)} before, {_shown(now)} now"


def _shown(value: Any) -> str:
    return "none" if value in (None, []) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
