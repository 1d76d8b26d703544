"""The result of a latency run: rows, and the JSON that they are kept in.

Shapes: T trials.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.scenario_rows import ScenarioRow, scenarios_from_json, scenarios_to_json
from fitserve_benchmarks.statistics import Interval, bootstrap_median, is_unstable, ratio, windows

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant at one batch size and thread count.

    Args:
        contestant: Its name.
        device: `cpu` or `cuda`.
        batch_size: Examples in one call.
        thread_count: Threads on the host.
        skipped: Why it was not measured; None where it was. What follows is then empty.
        load_s: Building the module or session.
        compile_s: The call that compiled; None for what does not compile.
        first_call_s: The first call after that.
        trial_medians_s: (T) median call of each trial, in the order they ran.
        p99_s: 99th percentile of all calls; None where there are too few to print it.
        sample_count: Calls timed.
        max_abs_diff: Largest difference from the reference's answers, over the batches and outputs.
        agrees: That difference is within 1e-4 · max(1, largest answer of the reference), or, for a variant, within what
            its own record allows.
        transfer: `host to host`, or `device to device` where inputs and outputs stay on the device.
        peak_memory_bytes: By how much preparing it and its first call raised the process's peak; None where unknown.
        nodes: Nodes of its optimized graph by execution provider; empty for what has none.
        fused_attention_count: Attention nodes among them that are one node each.
        device_memory_bytes: By how much it raised what is in use of a GPU's memory; None on the CPU.
    """

    contestant: str
    device: str
    batch_size: int
    thread_count: int
    skipped: str | None = None
    load_s: float = 0.0
    compile_s: float | None = None
    first_call_s: float = 0.0
    trial_medians_s: tuple[float, ...] = ()
    p99_s: float | None = None
    sample_count: int = 0
    max_abs_diff: float = 0.0
    agrees: bool = True
    transfer: str = "host to host"
    peak_memory_bytes: int | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)
    fused_attention_count: int = 0
    device_memory_bytes: int | None = None

    @property
    def label(self) -> str:
        """Contestant and device, as printed."""
        return f"{self.contestant} ({self.device})"

    @property
    def median_s(self) -> Interval:
        """Median call with its bootstrap interval. ValueError for a skipped row."""
        return bootstrap_median(np.array(self.trial_medians_s))

    @property
    def is_unstable(self) -> bool:
        """Tells whether the last three windows differ by more than 10 %."""
        return is_unstable(windows(np.array(self.trial_medians_s)))

    def times_as_fast_as(self, baseline: Row) -> Interval:
        """Gives how many times as fast as another row this one is, trial by trial.

        Raises:
            ValueError: the rows did not run side by side.
        """
        if (self.batch_size, self.thread_count) != (baseline.batch_size, baseline.thread_count):
            raise ValueError(f"ratio: expected rows that ran side by side, got {self.label} and {baseline.label}")
        return ratio(np.array(baseline.trial_medians_s), np.array(self.trial_medians_s))


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """A whole latency run.

    Args:
        model: Model name.
        version: Version that was measured.
        reference: Label of the contestant that the answers are held against.
        settings: Trials, warm-up and whatever else was asked for.
        environment: Hardware and versions.
        rows: Every contestant, batch size and thread count.
        scenarios: Every contestant, scenario and thread count; empty where no scenarios were asked for.
    """

    model: str
    version: int
    reference: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    scenarios: tuple[ScenarioRow, ...] = ()

    def save(self, path: Path) -> None:
        """Writes the result as JSON, with the figures that follow from the trials beside them."""
        document = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        for row, entry in zip(self.rows, document["rows"], strict=True):
            if row.skipped is None:
                entry |= {"median_s": asdict(row.median_s), "is_unstable": row.is_unstable}
        document["scenarios"] = scenarios_to_json(self.scenarios)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def load_result(path: Path) -> LatencyResult:
    """Reads what `LatencyResult.save` wrote.

    Raises:
        ValueError: another schema version.
        OSError: it cannot be read.
    """
    document = json.loads(path.read_text())
    if document.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"file '{path}': expected a latency result of schema version {SCHEMA_VERSION}")
    rows = rows_from_json(document.pop("rows"))
    scenarios = scenarios_from_json(document.pop("scenarios", ()))
    return LatencyResult(**document, rows=rows, scenarios=scenarios)


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Gives rows as JSON has them."""
    return [asdict(row) for row in rows]


def rows_from_json(entries: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Reads what `rows_to_json` gave; keys that follow from the trials are left out."""
    derived = ("median_s", "is_unstable")
    kept: list[dict[str, Any]] = [{key: entry[key] for key in entry if key not in derived} for entry in entries]
    return tuple(Row(**{**entry, "trial_medians_s": tuple(entry["trial_medians_s"])}) for entry in kept)
