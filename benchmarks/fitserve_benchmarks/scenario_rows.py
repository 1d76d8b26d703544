"""What a scenario gave for one contestant, as the result keeps it.

Shapes: T turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.statistics import Interval, is_unstable

SINGLE_STREAM: Final = "SingleStream"
MULTI_STREAM: Final = "MultiStream"
SERVER: Final = "Server"
OFFLINE: Final = "Offline"

RATES: Final = (SERVER, OFFLINE)
"""Scenarios whose figure is a rate: more is better."""


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """One contestant in one scenario at one thread count.

    Args:
        scenario: Its name.
        contestant: The contestant's.
        device: `cpu` or `cuda`.
        thread_count: Threads on the host.
        batch_size: Examples that the contestant got at once.
        skipped: Why it was not measured; None where it was. What follows is then empty.
        figure: Seconds of a query at the scenario's percentile; of Server and Offline examples a second.
        trial_figures: (T) each turn's figure.
        query_count: Queries that the figure is of.
        max_abs_diff: Largest difference from the reference's answers to the same batches.
        agrees: As in a latency row.
    """

    scenario: str
    contestant: str
    device: str
    thread_count: int
    batch_size: int
    skipped: str | None = None
    figure: Interval | None = None
    trial_figures: tuple[float, ...] = ()
    query_count: int = 0
    max_abs_diff: float = 0.0
    agrees: bool = True

    @property
    def label(self) -> str:
        """Contestant and device, as printed."""
        return f"{self.contestant} ({self.device})"

    @property
    def is_rate(self) -> bool:
        """Tells whether more is better."""
        return self.scenario in RATES

    @property
    def measured(self) -> Interval:
        """The figure. ValueError: the row was skipped."""
        if self.figure is None:
            raise ValueError(f"scenario {self.scenario}, {self.label}: expected a figure, got none: {self.skipped}")
        return self.figure

    @property
    def is_unstable(self) -> bool:
        """Tells whether the last three turns differ by more than 10 %, or there were fewer."""
        return is_unstable(np.array(self.trial_figures))

    def times_as_good_as(self, baseline: ScenarioRow) -> float:
        """Gives how many times as fast, or as many, as another row's: above 1 this one is better."""
        own, other = self.measured.estimate, baseline.measured.estimate
        return own / other if self.is_rate else other / own


def scenarios_to_json(rows: Sequence[ScenarioRow]) -> list[dict[str, Any]]:
    """Gives rows as JSON has them."""
    return [{**asdict(row), "is_unstable": row.figure is not None and row.is_unstable} for row in rows]


def scenarios_from_json(entries: Sequence[Mapping[str, Any]]) -> tuple[ScenarioRow, ...]:
    """Reads what `scenarios_to_json` gave."""
    return tuple(_row({key: entry[key] for key in entry if key != "is_unstable"}) for entry in entries)


def _row(entry: dict[str, Any]) -> ScenarioRow:
    figure = None if entry["figure"] is None else Interval(**entry["figure"])
    return ScenarioRow(**{**entry, "figure": figure, "trial_figures": tuple(entry["trial_figures"])})
