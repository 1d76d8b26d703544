"""A latency result in one paragraph: who is the fastest where, by how much, who overtakes, and what to doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from fitserve_benchmarks.contestants import DEVICE_TO_DEVICE, HOST_TO_HOST, REFERENCE
from fitserve_benchmarks.quantities import duration, threads_text, three_digits, times
from fitserve_benchmarks.rows import LatencyResult, Row
from fitserve_benchmarks.scenario_report import scenario_sentences

_LEADS: Final = {HOST_TO_HOST: "", DEVICE_TO_DEVICE: "on the device, "}


def verdict(result: LatencyResult) -> str:
    """Says in one paragraph who is the fastest where, by how much, and what to doubt."""
    sentences = [
        text
        for count, rows in by_threads(result)
        for transfer, lead in _LEADS.items()
        for text in _thread_sentences(f"With {threads_text(count)}, {lead}", rows, transfer)
    ]
    sentences += scenario_sentences(result.scenarios)
    return " ".join([*sentences, *_doubts(result)]) or "Nothing was measured."


def by_threads(result: LatencyResult) -> list[tuple[int, list[Row]]]:
    """Groups the rows by thread count, in order."""
    return [(count, list(rows)) for count, rows in groupby(result.rows, key=lambda row: row.thread_count)]


def by_batch(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Groups the measured ones of the rows by batch size, in order."""
    measured = [row for row in rows if row.skipped is None]
    return [(size, list(group)) for size, group in groupby(measured, key=lambda row: row.batch_size)]


def baseline_of(group: Sequence[Row]) -> Row | None:
    """Finds the eager module among rows of one batch size: on the CPU where it is there, else on the device."""
    eager = [row for row in group if row.contestant.startswith(REFERENCE)]
    return min(eager, key=lambda row: row.device != "cpu", default=None)


def _doubts(result: LatencyResult) -> Iterator[str]:
    measured = [row for row in result.rows if row.skipped is None]
    unstable = sum(row.is_unstable for row in measured)
    if unstable:
        yield f"{unstable} of {len(measured)} rows were unstable: read those figures with care."
    wrong = sorted({row.label for row in measured if not row.agrees})
    if wrong:
        yield f"The answers of {', '.join(wrong)} differ from {result.reference}: its times prove nothing."
    elif measured:
        worst = max(row.max_abs_diff for row in measured)
        yield f"All answers agree with {result.reference}, to {worst:.1e}."


def _thread_sentences(lead: str, rows: Sequence[Row], transfer: str) -> Iterator[str]:
    """Yields a sentence for each stretch of batch sizes with the same winner."""
    contests = [group for _, group in by_batch([row for row in rows if row.transfer == transfer]) if len(group) > 1]
    before: str | None = None
    for winner, stretch in groupby(contests, key=_winner):
        groups = list(stretch)
        yield f"{lead}{_stretch_text(winner, groups, is_overtaking=None not in (before, winner))}."
        lead, before = "", winner


def _stretch_text(winner: str | None, groups: Sequence[Sequence[Row]], is_overtaking: bool) -> str:
    sizes = [group[0].batch_size for group in groups]
    where = f"at batch {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
    if winner is None:
        return f"nobody is clearly the fastest {where}: " + "; ".join(map(_level_text, groups))
    what = "overtakes" if is_overtaking else "is the fastest"
    at_first = f"at batch {sizes[0]} " if len(groups) > 1 else ""
    return f"{winner} {what} {where}: {at_first}{_lead_text(groups[0])}"


def _lead_text(group: Sequence[Row]) -> str:
    """Says how far the fastest is ahead of the next one and of the eager module, the rest is in the table."""
    first, second, *_ = sorted(group, key=_median)
    baseline = baseline_of(group)
    others = dict.fromkeys(row.label for row in (baseline, second) if row is not None and row.label != first.label)
    rows = {row.label: row for row in group}
    against = " and ".join(f"{times(first.times_as_fast_as(rows[label]))} as fast as {label}" for label in others)
    return f"{duration(_median(first))}, {against}"


def _level_text(group: Sequence[Row]) -> str:
    first, second = sorted(group, key=_median)[:2]
    ratio = times(first.times_as_fast_as(second))
    baseline = baseline_of(group)
    text = f"at batch {first.batch_size} {first.label} is {ratio} as fast as {second.label}"
    if baseline is None or baseline in (first, second):
        return text
    return f"{text} and {three_digits(first.times_as_fast_as(baseline).estimate)}× as fast as {baseline.label}"


def _winner(group: Sequence[Row]) -> str | None:
    """Names the fastest; None where the interval of its lead over the next one holds 1."""
    first, second = sorted(group, key=_median)[:2]
    return first.label if first.times_as_fast_as(second).low > 1 else None


def _median(row: Row) -> float:
    return row.median_s.estimate
