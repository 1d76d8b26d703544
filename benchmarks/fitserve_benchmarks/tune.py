"""Finds how to serve a model for a latency target by measuring, and writes its `model.toml`.

Every candidate is served from a copy of the version by a server of its own, loaded with calls in flight over gRPC, its
answers checked. The fastest of those whose 99th percentile meets the target wins: first over variants and threads,
then, with the winner's, over the largest batch, then over the number of worker processes. Workers are the server's and
not a model's: the file names them in a comment.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from fitserve_benchmarks.programs import running_service
from fitserve_benchmarks.quantities import duration, three_digits
from fitserve_benchmarks.subject import highest_version
from fitserve_benchmarks.wire import WirePlan, WireRow, measure_wire
from fitserve_contract.files import replace_durably
from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import OVERRIDES_FILE, version_path

BATCH_LIMITS: Final = (1, 8, 64)
"""Largest batches that are tried beside the default."""

_TUNED_KEYS: Final = ("variant", "intra_op_num_threads", "max_batch_size")
_COMMENT: Final = "# fitserve-bench tune: "


class NoCandidateError(RuntimeError):
    """No candidate meets the target; the message names the nearest."""


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What is tuned.

    Args:
        repository: Model repository.
        model: Model name; its highest version is measured.
        p99_target_ms: 99 of 100 calls must take at most so long.
        in_flight: Calls in flight while it is measured.
        duration_s: Time for each candidate.
        device: `cpu` or `cuda`: where it is served, and whose variants are tried.
    """

    repository: Path
    model: str
    p99_target_ms: float
    in_flight: int = 8
    duration_s: float = 4.0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate as measured.

    Args:
        values: Its keys of `model.toml`.
        row: What the load gave.
        workers: Worker processes of the server.
    """

    values: Mapping[str, Any]
    row: WireRow = field(repr=False)
    workers: int = 1

    def meets(self, p99_target_ms: float) -> bool:
        """Tells whether it is right, failed no call, and its 99th percentile is known and within the target."""
        is_sound = self.row.is_right and self.row.failed_count == 0 and self.row.p99_s is not None
        return is_sound and 1e3 * (self.row.p99_s or 0.0) <= p99_target_ms


def run_tune(plan: TunePlan, say: Callable[[str], None]) -> list[Trial]:
    """Measures the candidates.

    Args:
        plan: What.
        say: Takes a line of progress.

    Raises:
        SubjectError: the model is not there.
        StepFailedError: a server did not start, or the version was not READY.
    """
    version = highest_version(plan.repository, plan.model)
    source = version_path(plan.repository, plan.model, version).folder
    trials = [_tried(plan, source, values, say) for values in _first_candidates(source, plan.device)]
    best = _leading(trials, plan)
    trials += [_tried(plan, source, {**best.values, "max_batch_size": most}, say) for most in BATCH_LIMITS]
    best = _leading(trials, plan)
    return trials + [_tried(plan, source, best.values, say, workers) for workers in _worker_counts()]


def best_trial(trials: Sequence[Trial], plan: TunePlan) -> Trial:
    """Picks the trial with the most requests a second among those that meet the target.

    Raises:
        NoCandidateError: none does.
    """
    best = _best(trials, plan)
    if best is not None:
        return best
    known = [trial for trial in trials if trial.row.p99_s is not None]
    if not known:
        raise NoCandidateError("p99: expected enough calls to know it, got too few: give more --seconds")
    nearest = min(known, key=lambda trial: trial.row.p99_s or 0.0)
    raise NoCandidateError(
        f"p99: expected at most {plan.p99_target_ms:g} ms with {plan.in_flight} calls in flight, the nearest was "
        f"{duration(nearest.row.p99_s or 0.0)} with {_trial_text(nearest.values, nearest.workers)}; nothing was written"
    )


def tuned_toml(trials: Sequence[Trial], plan: TunePlan) -> str:
    """Writes the best trial as `model.toml`; other keys that the model's file has stay as they are.

    Raises:
        NoCandidateError: none meets the target.
    """
    best = best_trial(trials, plan)
    path = plan.repository / plan.model / OVERRIDES_FILE
    before = tomllib.loads(path.read_text()) if path.is_file() else {}
    kept = {name: value for name, value in before.items() if name not in _TUNED_KEYS}
    head = (
        f"{_COMMENT}p99 {duration(best.row.p99_s or 0.0)} of at most {plan.p99_target_ms:g} ms, "
        f"{best.row.requests_per_s:,.0f} requests/s with {plan.in_flight} in flight; "
        f"measured with fitserve-serve --workers {best.workers}"
    )
    return "\n".join([head, *(f"{name} = {_toml(value)}" for name, value in {**kept, **best.values}.items())]) + "\n"


def write_tuned(text: str, plan: TunePlan) -> Path:
    """Replaces the model's `model.toml`; a server that watches the repository takes it up by itself."""
    path = plan.repository / plan.model / OVERRIDES_FILE
    replace_durably(path, text.encode())
    return path


def tune_table(trials: Sequence[Trial], plan: TunePlan) -> Table:
    """Makes the table of all candidates."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("variant", "threads", "largest batch", "workers", "requests/s", "p50", "p99", "target"):
        table.add_column(heading, justify="left" if heading in ("variant", "target") else "right", no_wrap=True)
    for trial in trials:
        values, row = trial.values, trial.row
        places = (str(values["variant"]), str(values["intra_op_num_threads"]))
        most = str(values.get("max_batch_size", "default"))
        p99 = "too few calls" if row.p99_s is None else duration(row.p99_s)
        met = "met" if trial.meets(plan.p99_target_ms) else "missed"
        table.add_row(
            *places, most, str(trial.workers), three_digits(row.requests_per_s), duration(row.p50_s), p99, met
        )
    return table


def _first_candidates(source: Path, device: str) -> list[dict[str, Any]]:
    manifest = read_manifest(source)
    files = manifest.files.values() if manifest else ()
    variants = [facts["variant"] for facts in files if isinstance(facts, Mapping) and facts.get("device") == device]
    # On a GPU the host's threads do nothing for an operator.
    threads = sorted({1, len(os.sched_getaffinity(0))}) if device == "cpu" else [1]
    place = {} if device == "cpu" else {"device": device}
    return [
        {"variant": variant, "intra_op_num_threads": count, **place}
        for variant in ("fp32", *variants)
        for count in threads
    ]


def _worker_counts() -> list[int]:
    """Lists numbers of workers beside one: each power of two up to the processors, and as many as these."""
    processors = len(os.sched_getaffinity(0))
    return sorted({processors, *(1 << bit for bit in range(1, processors.bit_length()))} - {1})


def _tried(
    plan: TunePlan, source: Path, values: Mapping[str, Any], say: Callable[[str], None], workers: int = 1
) -> Trial:
    say(f"{plan.model}: {_trial_text(values, workers)}")
    with tempfile.TemporaryDirectory(prefix="fitserve-tune-") as folder:
        root = Path(folder, "repository")
        shutil.copytree(source, root / plan.model / "1")
        text = "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())
        (root / plan.model / OVERRIDES_FILE).write_text(text)
        options = ["--device", plan.device, *(["--workers", str(workers)] if workers > 1 else [])]
        with running_service(root, plan.model, 1, log_path=Path(folder, "server.log"), options=options) as service:
            wire = WirePlan(
                service.address, plan.model, in_flight=(plan.in_flight,), duration_s=plan.duration_s, connections=None
            )
            (row,) = measure_wire(wire, say=lambda _: None).rows
    return Trial(dict(values), row, workers)


def _leading(trials: Sequence[Trial], plan: TunePlan) -> Trial:
    """Picks what the next candidates begin with: the best, or the one with the most requests where none is."""
    return _best(trials, plan) or max(trials, key=lambda trial: trial.row.requests_per_s)


def _best(trials: Sequence[Trial], plan: TunePlan) -> Trial | None:
    meeting = [trial for trial in trials if trial.meets(plan.p99_target_ms)]
    return max(meeting, key=lambda trial: trial.row.requests_per_s, default=None)


def _trial_text(values: Mapping[str, Any], workers: int) -> str:
    return ", ".join(f"{name} {value}" for name, value in {**values, "workers": workers}.items())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else f"{value}"
