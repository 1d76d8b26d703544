"""What an overload run is held to: figures out of the records of its phases, each with its bound.

Shapes: N requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitserve_benchmarks.overload_source import (
    DEADLINE_EXCEEDED,
    OK,
    RESOURCE_EXHAUSTED,
    UNANSWERED,
    WRONG,
    PhaseRecord,
    Sent,
)
from fitserve_benchmarks.statistics import Times

WINDOW_S = 0.25
"""Length of the windows in which it is seen whether all is as it was before."""

_OUTCOMES = {
    OK: "right",
    RESOURCE_EXHAUSTED: "refused",
    DEADLINE_EXCEEDED: "late",
    WRONG: "wrong",
    UNANSWERED: "unanswered",
}


@dataclass(frozen=True, slots=True)
class PhaseSummary:
    """A phase in numbers.

    Args:
        name: Of the phase.
        duration_s: Time in which its requests were due.
        rate: Requests a second that were due; of a closed phase, those that left.
        timeout_ms: Deadline of each; 0: none.
        outcomes: How many came to what: right, refused, late, wrong, unanswered, or another status by number.
        goodput: Right answers a second.
        p50_s: Median of the right answers; None where there are none. So are the others of what they are about.
        p99_s: 99th percentile of the right answers.
        refusal_p99_s: 99th percentile of the refusals.
        health_count: Questions for health.
        health_failed: Of these, those that were not answered with SERVING.
        health_p99_s: 99th percentile of the others.
        late_p99_s: 99th percentile of how late requests left.
        source_share: Processors that the source took.
    """

    name: str
    duration_s: float
    rate: float
    timeout_ms: int
    outcomes: dict[str, int]
    goodput: float
    p50_s: float | None
    p99_s: float | None
    refusal_p99_s: float | None
    health_count: int
    health_failed: int
    health_p99_s: float | None
    late_p99_s: float | None
    source_share: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is to hold.

    Args:
        name: What.
        found: What was reached; infinity where nothing came of which to take it.
        bound: What was to be reached.
        is_least: The bound is the least that is enough; else the most that is allowed.
        unit: "s", "" for a share or a ratio, or what is counted.
    """

    name: str
    found: float
    bound: float
    is_least: bool
    unit: str

    @property
    def is_held(self) -> bool:
        """Tells whether it was reached."""
        return self.found >= self.bound if self.is_least else self.found <= self.bound


def summarize(record: PhaseRecord) -> PhaseSummary:
    """Puts a phase into numbers."""
    phase, requests = record.phase, record.requests
    right, refused = (_took(requests, outcome) for outcome in (OK, RESOURCE_EXHAUSTED))
    healthy = _took(record.health, OK)
    counted = Counter(_OUTCOMES.get(sent.outcome, f"status {sent.outcome}") for sent in requests)
    return PhaseSummary(
        name=phase.name,
        duration_s=phase.duration_s,
        rate=len(requests) / phase.duration_s,
        timeout_ms=phase.timeout_ms,
        outcomes=dict(counted),
        goodput=right.size / phase.duration_s,
        p50_s=quantile(right, 0.5),
        p99_s=quantile(right, 0.99),
        refusal_p99_s=quantile(refused, 0.99),
        health_count=len(record.health),
        health_failed=len(record.health) - healthy.size,
        health_p99_s=quantile(healthy, 0.99),
        late_p99_s=quantile(np.array([sent.late_s for sent in requests]), 0.99),
        source_share=record.cpu_s / phase.duration_s,
    )


def quantile(values: Times, fraction: float) -> float | None:
    """Gives a quantile; None of nothing."""
    return float(np.quantile(values, fraction)) if values.size else None


def back_to_normal_s(quiet: PhaseRecord, after: PhaseRecord) -> float | None:
    """Tells how long it took until all was as before the overload.

    Time is cut into windows of 250 ms. A window is normal whose share of requests without a right answer, and whose
    median, are no worse than those of the worst window before.

    Returns:
        When the first two normal windows in a row began, seconds after the overload's end; None where there are none.
    """
    before = [_weather(window) for window in _windows(quiet)]
    failed, median_s = (max(values) for values in zip(*before, strict=True))
    is_normal = [found[0] <= failed and found[1] <= median_s for found in map(_weather, _windows(after))]
    for index in range(len(is_normal) - 1):
        if is_normal[index] and is_normal[index + 1]:
            return index * WINDOW_S
    return None


def figures(
    peak: float,
    quiet: PhaseRecord,
    flood: PhaseRecord,
    after: PhaseRecord,
    scrapes: Sequence[float | None],
    *,
    is_bounded: bool,
) -> list[Figure]:
    """Holds a run to what an overloaded server must do.

    Args:
        peak: Right answers a second, at the best level of a closed loop.
        quiet: At 80 % of it.
        flood: At ten times it.
        after: At 80 % again.
        scrapes: Seconds that each request for the metrics page took, from begin to end; None: not answered.
        is_bounded: The server bounds how long what waits may take to run, and with it the latency of the admitted and
            the time until all is as before. Else deadlines and bytes bound it.
    """
    normal, flooded = summarize(quiet), summarize(flood)
    answered_s = np.array([took_s for took_s in scrapes if took_s is not None])
    wrong = sum(sent.outcome in (WRONG, UNANSWERED) for each in (quiet, flood, after) for sent in each.requests)
    bounded = [
        Figure("p99 of the admitted, of that at 80 %", _over(flooded.p99_s, normal.p99_s), 2.0, False, ""),
        Figure("back to normal after", _or_never(back_to_normal_s(quiet, after)), 1.0, False, "s"),
    ]
    return [
        Figure("goodput at ten times the capacity, of the peak", flooded.goodput / peak, 0.9, True, ""),
        *(bounded if is_bounded else []),
        Figure("p99 of refusals", _or_never(flooded.refusal_p99_s), 0.010, False, "s"),
        Figure("p99 of health", _or_never(flooded.health_p99_s), 0.050, False, "s"),
        Figure("health not SERVING", flooded.health_failed, 0, False, "answers"),
        Figure("metrics pages not answered", len(scrapes) - answered_s.size, 0, False, "pages"),
        Figure("wrong or never answered", wrong, 0, False, "requests"),
    ]


def _took(sent: Sequence[Sent], outcome: int) -> Times:
    return np.array([each.took_s for each in sent if each.outcome == outcome], np.float64)


def _windows(record: PhaseRecord) -> list[list[Sent]]:
    """Cuts a phase into windows by when requests were due; what is left over at the end is dropped."""
    windows: list[list[Sent]] = [[] for _ in range(max(1, int(record.phase.duration_s / WINDOW_S)))]
    for sent in record.requests:
        if (index := int(sent.due_s / WINDOW_S)) < len(windows):
            windows[index].append(sent)
    return windows


def _weather(window: Sequence[Sent]) -> tuple[float, float]:
    """Gives the share of a window's requests without a right answer, and the median of the others."""
    right = _took(window, OK)
    failed = 1 - right.size / len(window) if window else 0.0
    return failed, float(np.median(right)) if right.size else 0.0


def _over(value: float | None, base: float | None) -> float:
    return value / base if value is not None and base else float("inf")


def _or_never(value_s: float | None) -> float:
    return float("inf") if value_s is None else value_s
