"""What a comparison of two checkouts gives: pairs of turns, the interval of their ratios, and a verdict per level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from fitserve_benchmarks.serve_load import Turn
from fitserve_benchmarks.serve_rows import Check
from fitserve_benchmarks.statistics import Interval, median_interval, sign_test_rank

LEAST_RATIO: Final = 0.95
"""A level fails where its whole interval lies below."""

_SCHEMA_VERSION: Final = 1

Verdict = Literal["ok", "slower", "too few pairs"]


@dataclass(frozen=True, slots=True)
class SideTurn:
    """A turn of load on one side.

    Args:
        rate: Answers a second.
        cpu_per_request_s: Processor time of the server's processes for a request.
        p50_s: Median latency.
        failed_count: Calls that were not answered with a message.
    """

    rate: float
    cpu_per_request_s: float
    p50_s: float
    failed_count: int


@dataclass(frozen=True, slots=True)
class TurnPair:
    """A turn of each side, one right after the other."""

    ours: SideTurn
    other: SideTurn
    is_ours_first: bool

    @property
    def ratio(self) -> float:
        """Returns how many times as many answers a second ours gave as the other."""
        return self.ours.rate / self.other.rate


@dataclass(frozen=True, slots=True)
class PairedRow:
    """Both sides at one level of calls in flight.

    Args:
        model: Model name.
        batch_size: Examples in a request.
        in_flight: Calls in flight at any time.
        pairs: At least one, in the order measured.
    """

    model: str
    batch_size: int
    in_flight: int
    pairs: tuple[TurnPair, ...]

    @property
    def median_ratio(self) -> float:
        """Returns the median of the pairwise ratios, ours against the other: above 1 ours is faster."""
        return float(np.median([pair.ratio for pair in self.pairs]))

    @property
    def interval(self) -> Interval | None:
        """Returns that median with its distribution-free interval at 95 %; None for fewer than 6 pairs."""
        return median_interval(np.array([pair.ratio for pair in self.pairs]))

    @property
    def verdict(self) -> Verdict:
        """Judges the level by its whole interval."""
        interval = self.interval
        if interval is None:
            return "too few pairs"
        return "slower" if interval.high < LEAST_RATIO else "ok"

    @property
    def failed_count(self) -> int:
        """Counts the calls that were not answered, of both sides."""
        return sum(turn.failed_count for pair in self.pairs for turn in (pair.ours, pair.other))


@dataclass(frozen=True)
class AgainstResult:
    """A whole comparison.

    Args:
        settings: How it was measured.
        environment: Hardware, versions and load at the start.
        load_average_after: Load of the machine at the end.
        ours: Commit of this checkout.
        other: Commit of the other one.
        rows: One for each level.
        checks: Sampled answers of each side at each level.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    load_average_after: Sequence[float]
    ours: Mapping[str, Any]
    other: Mapping[str, Any]
    rows: Sequence[PairedRow]
    checks: Sequence[Check]

    @property
    def is_right(self) -> bool:
        """Tells whether each check saw answers, none of them wrong, and no call failed."""
        are_checked = all(check.checked_count and not check.wrong_count for check in self.checks)
        return are_checked and not any(row.failed_count for row in self.rows)

    @property
    def is_slower(self) -> bool:
        """Tells whether the whole interval of any level lies below the bound."""
        return any(row.verdict == "slower" for row in self.rows)

    @property
    def has_passed(self) -> bool:
        """Tells whether the answers were right and no level was slower."""
        return self.is_right and not self.is_slower

    def save(self, path: Path) -> None:
        """Writes the result as JSON, each row with its ratios, interval and verdict."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "schema_version": _SCHEMA_VERSION,
            "least_ratio": LEAST_RATIO,
            **asdict(self),
            "rows": [_row_document(row) for row in self.rows],
        }
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def make_side_turn(turn: Turn, cpu_s: float) -> SideTurn:
    """Sums up a turn.

    Args:
        turn: What the load saw; at least one answer.
        cpu_s: Processor time of the server meanwhile, the warm-up's included, whose calls came at the same rate.
    """
    return SideTurn(
        rate=turn.rate,
        cpu_per_request_s=cpu_s / (turn.rate * turn.elapsed_s),
        p50_s=float(np.median(turn.latencies_s)),
        failed_count=turn.failed_count,
    )


def is_ours_first(number: int) -> bool:
    """Tells who begins the n-th pair: ours, other, other, ours, …, so that a steady drift favours neither."""
    return number % 2 == 0


def _row_document(row: PairedRow) -> dict[str, Any]:
    return {
        **asdict(row),
        "ratios": [pair.ratio for pair in row.pairs],
        "median_ratio": row.median_ratio,
        "interval": None if row.interval is None else asdict(row.interval),
        "interval_rank": sign_test_rank(len(row.pairs)),
        "verdict": row.verdict,
    }
