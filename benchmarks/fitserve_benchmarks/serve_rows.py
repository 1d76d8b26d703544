"""What the servers' benchmark gives: a row for each contestant at each level, and ratios between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.poisson import PoissonResult
from fitserve_benchmarks.serve_load import Turn
from fitserve_benchmarks.statistics import Interval, bootstrap_median, is_unstable, percentile

_SCHEMA_VERSION: Final = 1
_LATE_PART: Final = 0.1


@dataclass(frozen=True, slots=True)
class ServeRow:
    """One contestant at one level of calls in flight.

    Args:
        model: Model name.
        batch_size: Examples in a request.
        in_flight: Calls in flight at any time.
        contestant: Who.
        rates: Answers a second of each turn, in order; n-th turns of a level's contestants ran one after the other.
        p50_s: Median latency over all turns.
        p99_s: 99th percentile; None where there are too few samples to print it.
        sample_count: Latencies measured.
        failed_count: Calls that were not answered.
        cpu_per_request_s: Processor time of the server's processes for a request.
        load_processor_share: Processors that the load source kept busy.
    """

    model: str
    batch_size: int
    in_flight: int
    contestant: str
    rates: tuple[float, ...]
    p50_s: float
    p99_s: float | None
    sample_count: int
    failed_count: int
    cpu_per_request_s: float
    load_processor_share: float

    @property
    def key(self) -> tuple[str, int, int]:
        """Model, batch size and calls in flight: what contestants are compared at."""
        return self.model, self.batch_size, self.in_flight

    @property
    def requests_per_s(self) -> float:
        """Median of the turns."""
        return float(np.median(self.rates))

    @property
    def is_unstable(self) -> bool:
        """Tells whether the turns differ by more than 10 %."""
        return is_unstable(self.rates)


@dataclass(frozen=True, slots=True)
class Check:
    """Sampled answers of a contestant, held against ONNX Runtime in process or, an echo's, against the request."""

    model: str
    batch_size: int
    contestant: str
    checked_count: int
    wrong_count: int


@dataclass(frozen=True, slots=True)
class PoissonRow:
    """Latency under open-loop load.

    Args:
        model: Model name.
        contestant: Who.
        capacity: Requests/s of the same client in a closed loop of 32 in flight just before, the median of the turns.
        rate: Requests/s that were offered, the median of the turns.
        p50_s: Median latency, from when a request was due.
        p99_s: 99th percentile; None where there are too few samples to print it.
        sample_count: Latencies measured.
        failed_count: Calls that were not answered.
        late_s: 99th percentile of how late the client sent; a part of the latency.
        late_p50_s: The median of it.
        held_count: Calls that the client held back because the server took no further one.
        load_cpu_per_request_s: Processor time of the client for a request.
    """

    model: str
    contestant: str
    capacity: float
    rate: float
    p50_s: float
    p99_s: float | None
    sample_count: int
    failed_count: int
    late_s: float
    late_p50_s: float = 0.0
    held_count: int = 0
    load_cpu_per_request_s: float = 0.0

    @property
    def is_disturbed(self) -> bool:
        """Tells whether the client's own lateness is more than a tenth of what it measured."""
        is_late_at_all = self.late_p50_s > _LATE_PART * self.p50_s
        return is_late_at_all or (self.p99_s is not None and self.late_s > _LATE_PART * self.p99_s)


@dataclass(frozen=True)
class ServeResult:
    """A whole run.

    Args:
        settings: How it was measured.
        environment: Hardware, versions and load at the start.
        load_average_after: Load of the machine at the end.
        versions: Of the peers.
        absent: Peers that could not take part, with the reason.
        rows: Closed loop.
        checks: Sampled answers.
        poisson: Open loop.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    load_average_after: Sequence[float]
    versions: Mapping[str, str]
    absent: Mapping[str, str]
    rows: Sequence[ServeRow]
    checks: Sequence[Check]
    poisson: Sequence[PoissonRow]

    @property
    def is_right(self) -> bool:
        """Tells whether no checked answer was wrong and no call of the closed loop failed."""
        return not any(check.wrong_count for check in self.checks) and not any(row.failed_count for row in self.rows)

    def save(self, path: Path) -> None:
        """Writes the result as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"schema_version": _SCHEMA_VERSION, **asdict(self)}
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")

    def row(self, model: str, batch_size: int, in_flight: int, contestant: str) -> ServeRow | None:
        """Finds a row."""
        key = (model, batch_size, in_flight)
        return next((row for row in self.rows if row.key == key and row.contestant == contestant), None)


def make_row(key: tuple[str, int, int], contestant: str, turns: Sequence[Turn], server_cpu_s: float) -> ServeRow:
    """Sums up a contestant's turns at one level.

    Args:
        key: Model, batch size and calls in flight.
        contestant: Who.
        turns: At least one.
        server_cpu_s: Processor time of the server over all the turns, warm-up included.
    """
    latencies_s = np.concatenate([turn.latencies_s for turn in turns])
    elapsed_s = sum(turn.elapsed_s for turn in turns)
    # The processor time holds the warm-up's calls too, which came at the same rate.
    answered = sum(turn.rate * turn.elapsed_s for turn in turns)
    return ServeRow(
        *key,
        contestant=contestant,
        rates=tuple(turn.rate for turn in turns),
        p50_s=float(np.median(latencies_s)) if latencies_s.size else 0.0,
        p99_s=percentile(latencies_s, 0.99),
        sample_count=int(latencies_s.size),
        failed_count=sum(turn.failed_count for turn in turns),
        cpu_per_request_s=server_cpu_s / answered if answered else 0.0,
        load_processor_share=sum(turn.load_cpu_s for turn in turns) / elapsed_s,
    )


def make_poisson_row(model: str, contestant: str, turns: Sequence[tuple[float, float, PoissonResult]]) -> PoissonRow:
    """Sums up a contestant's turns of open-loop load.

    Args:
        model: Model name.
        contestant: Who.
        turns: Of each, at least one: capacity and offered requests/s, and what it gave.
    """
    capacities, rates, results = zip(*turns, strict=True)
    latencies_s = np.concatenate([result.latencies_s for result in results])
    lateness_s = np.concatenate([result.lateness_s for result in results])
    late_p50_s, late_s = np.quantile(lateness_s, [0.5, 0.99]).tolist() if lateness_s.size else (0.0, 0.0)
    return PoissonRow(
        model,
        contestant,
        capacity=float(np.median(capacities)),
        rate=float(np.median(rates)),
        p50_s=float(np.median(latencies_s)) if latencies_s.size else 0.0,
        p99_s=percentile(latencies_s, 0.99),
        sample_count=int(latencies_s.size),
        failed_count=sum(result.failed_count for result in results),
        late_s=late_s,
        late_p50_s=late_p50_s,
        held_count=sum(result.held_count for result in results),
        load_cpu_per_request_s=sum(result.cpu_s for result in results) / max(1, latencies_s.size),
    )


def rate_ratio(row: ServeRow, other: ServeRow) -> Interval | None:
    """Gives how many times as many requests/s a row has as another, turn by turn; None where one has a turn of none."""
    if len(row.rates) != len(other.rates) or not all(other.rates):
        return None
    return bootstrap_median(np.array(row.rates) / np.array(other.rates))
