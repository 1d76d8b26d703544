"""Two latency results side by side: which rows became faster, and what else changed between the runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table

from fitserve_benchmarks.quantities import duration_with_interval, three_digits
from fitserve_benchmarks.rows import LatencyResult, Row

_COMPARED_FACTS: Final = ("processor", "usable_processors", "gpus", "python", "platform", "packages")


@dataclass(frozen=True, slots=True)
class Change:
    """A row of both results.

    Args:
        old: Of the first result.
        new: Of the second.
    """

    old: Row
    new: Row

    @property
    def times_as_fast(self) -> float:
        """Median of the old over that of the new: above 1 the new one is faster."""
        return self.old.median_s.estimate / self.new.median_s.estimate

    @property
    def verdict(self) -> str:
        """Says `faster`, `slower`, or `level` where the intervals overlap; `unstable` where a row is."""
        if self.old.is_unstable or self.new.is_unstable:
            return "unstable"
        if self.new.median_s.high < self.old.median_s.low:
            return "faster"
        return "slower" if self.new.median_s.low > self.old.median_s.high else "level"


def changes(old: LatencyResult, new: LatencyResult) -> list[Change]:
    """Pairs the rows that both results measured, in the order of the new one."""
    before = {_key(row): row for row in old.rows if row.skipped is None}
    return [Change(before[_key(row)], row) for row in new.rows if row.skipped is None and _key(row) in before]


def unlike(old: LatencyResult, new: LatencyResult) -> list[str]:
    """Lists what differs between the runs beside the rows, one sentence each: it may be why they differ."""
    sides = (old.environment, new.environment)
    found = [
        sentence for name in _COMPARED_FACTS for sentence in _difference(name, *(side.get(name) for side in sides))
    ]
    if (old.model, old.version) != (new.model, new.version):
        found.append(f"model: {old.model} version {old.version} before, {new.model} version {new.version} now")
    return found


def change_table(pairs: list[Change]) -> Table:
    """Makes the table of changes."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("threads", "batch", "contestant", "before", "now", "× as fast", ""):
        table.add_column(heading, justify="left" if heading in ("contestant", "") else "right", no_wrap=True)
    for pair in pairs:
        times = (duration_with_interval(pair.old.median_s), duration_with_interval(pair.new.median_s))
        places = (str(pair.new.thread_count), str(pair.new.batch_size), pair.new.label)
        table.add_row(*places, *times, three_digits(pair.times_as_fast), pair.verdict)
    return table


def _key(row: Row) -> tuple[str, int, int]:
    return (row.label, row.batch_size, row.thread_count)


def _difference(name: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _difference(key, before.get(key), now.get(key))
    elif before != now:
        yield f"{name}: {_shown(before)} before, {_shown(now)} now"


def _shown(value: Any) -> str:
    return "none" if value in (None, []) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
