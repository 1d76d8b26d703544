"""Promotion that is earned: a label moves to a version that answers as well and as fast as the one that it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fitserve_client import control, messages
from fitserve_client.client import Client
from fitserve_client.errors import FailedPreconditionError, NotFoundError
from fitserve_client.messages import named_inputs
from fitserve_client.models import VersionDetails
from fitserve_client.tensors import ArrayLike, Subject, as_array
from fitserve_contract.datatypes import BYTES, NUMPY_DTYPES
from fitserve_contract.labels import LabelMove
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.sums import ClassificationSums, MultiLabelSums, Sums, TokenClassificationSums
from fitserve_contract.tensor_bytes import Array

DEFAULT_REQUEST_COUNT: Final = 1000
"""Requests to each version; ten of them are slower than the 99th percentile."""

MIN_REQUEST_COUNT: Final = 100
"""Fewer have no 99th percentile but their maximum."""

_WARM_COUNT: Final = 20
_FREE_AXIS: Final = 16
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a version must hold against the one that it replaces.

    Args:
        max_accuracy_drop: How much worse its quality may be, >= 0, in units of the figure.
        max_p99_ratio: How many times the other's 99th percentile of latency its own may be, > 0.
        request_count: Requests to each version that are timed.

    Raises:
        ValueError: a value out of its range.
    """

    max_accuracy_drop: float
    max_p99_ratio: float
    request_count: int = DEFAULT_REQUEST_COUNT

    def __post_init__(self) -> None:
        if not self.max_accuracy_drop >= 0:
            raise ValueError(f"max_accuracy_drop: expected at least 0, got {self.max_accuracy_drop}")
        if not self.max_p99_ratio > 0:
            raise ValueError(f"max_p99_ratio: expected more than 0, got {self.max_p99_ratio}")
        if self.request_count < MIN_REQUEST_COUNT:
            raise ValueError(f"request_count: expected at least {MIN_REQUEST_COUNT}, got {self.request_count}")


@dataclass(frozen=True, slots=True)
class Showing:
    """How one version did.

    Args:
        version: Its number.
        quality: Accuracy, macro F1 or R²: larger is better.
        p50_ms: Median latency of one request.
        p99_ms: 99th percentile of it.
    """

    version: int
    quality: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Two versions side by side, and what follows.

    Args:
        model: Model name.
        figure: What `quality` is: accuracy, macro_f1 or r_squared.
        example_count: Examples that both were scored on.
        incumbent: The version that the label points at.
        candidate: The version that is to take its place.
        criteria: What was asked.
    """

    model: str
    figure: str
    example_count: int
    incumbent: Showing
    candidate: Showing
    criteria: Criteria

    @property
    def accuracy_drop(self) -> float:
        """How much worse the candidate is; negative where it is better."""
        return self.incumbent.quality - self.candidate.quality

    @property
    def p99_ratio(self) -> float:
        """The candidate's 99th percentile over the incumbent's."""
        return self.candidate.p99_ms / self.incumbent.p99_ms

    @property
    def objections(self) -> tuple[str, ...]:
        """Why the promotion is refused; none: it passes. A figure that is NaN never passes."""
        found = []
        drop, ratio, criteria = self.accuracy_drop, self.p99_ratio, self.criteria
        if not drop <= criteria.max_accuracy_drop + _ROUNDING:
            found.append(f"{self.figure} drops by {drop:.6g}, allowed {criteria.max_accuracy_drop:g}")
        if not ratio <= criteria.max_p99_ratio:
            found.append(f"p99 is {ratio:.4g} times as long, allowed {criteria.max_p99_ratio:g}")
        return tuple(found)

    def figures(self) -> dict[str, Any]:
        """Gives it all as JSON; numbers that are not finite as text."""
        document = {**asdict(self), "accuracy_drop": self.accuracy_drop, "p99_ratio": self.p99_ratio}
        finite: dict[str, Any] = _finite(document)
        return finite


@dataclass(frozen=True, slots=True)
class LabelledExamples:
    """Examples to judge by: inputs as for `Client.predict`, one label per example."""

    inputs: messages.Inputs
    labels: ArrayLike


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of it: the verdict, and the move of the label; None where it was refused."""

    verdict: Verdict
    move: LabelMove | None


def promote(
    client: Client,
    model: str,
    *,
    source: str,
    target: str,
    criteria: Criteria,
    examples: LabelledExamples | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Promotion:
    """Moves a label to another label's version, where that version earns it.

    Args:
        client: The server.
        model: Model name.
        source: Label of the candidate.
        target: Label that moves.
        criteria: What the candidate must hold.
        examples: To judge by; None: the held-out set that the incumbent carries.
        clock: Seconds, for tests.

    Raises:
        NotFoundError: one of the labels is not there.
        FailedPreconditionError: both labels point at one version, or `source` moved meanwhile.
        FitserveError: with code ABORTED where `target` moved meanwhile; or any other failure. Nothing moved then.
    """
    labels = client.run(control.label_history(model)).labels
    candidate, incumbent = _version_of(model, labels, source), _version_of(model, labels, target)
    if candidate == incumbent:
        text = f"model '{model}': expected '{source}' and '{target}' at two versions, got both at version {incumbent}"
        raise FailedPreconditionError(text)
    verdict = judge(client, model, incumbent, candidate, criteria, examples, clock)
    if verdict.objections:
        return Promotion(verdict, None)
    now = client.run(control.label_history(model)).labels.get(source, 0)
    if now != candidate:
        text = f"label '{source}' of model '{model}': expected it at version {candidate} as judged, found it at {now}"
        raise FailedPreconditionError(text)
    why = f"promoted from {source}"
    move = control.set_label(model, target, candidate, expected=incumbent, why=why, figures=verdict.figures())
    return Promotion(verdict, client.run(move))


def judge(
    client: Client,
    model: str,
    incumbent: int,
    candidate: int,
    criteria: Criteria,
    examples: LabelledExamples | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Scores and times two versions; see `promote`."""
    data = (None, None) if examples is None else (examples.inputs, examples.labels)
    comparison = client.compare(model, (incumbent, candidate), *data)
    one, two = comparison.first.sums, comparison.second.sums
    details = client.details(model, version=incumbent)
    inputs = zero_inputs(details) if examples is None else _first_example(details, examples.inputs)
    times = _interleaved_s(client, model, (incumbent, candidate), inputs, criteria.request_count, clock)
    figure, quality = quality_of(one)
    return Verdict(
        model,
        figure,
        one.example_count,
        _showing(incumbent, quality, times[incumbent]),
        _showing(candidate, quality_of(two)[1], times[candidate]),
        criteria,
    )


def quality_of(sums: Sums) -> tuple[str, float]:
    """Gives the one figure that a version is judged by, larger is better, and its name."""
    if isinstance(sums, ClassificationSums):
        return "accuracy", sums.accuracy
    if isinstance(sums, TokenClassificationSums):
        return "accuracy", sums.positions.accuracy
    if isinstance(sums, MultiLabelSums):
        return "macro_f1", sums.macro_f1
    return "r_squared", sums.r_squared


def percentile_ms(times_s: Sequence[float], share: float) -> float:
    """Gives the smallest of the times that at least a share of them does not exceed, milliseconds (nearest rank)."""
    ordered = sorted(times_s)
    return 1e3 * ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def zero_inputs(details: VersionDetails) -> dict[str, Array]:
    """Makes one example of zeros for a signature; free axes behind the first are 16 long."""
    return {spec.name: _zeros(spec) for spec in details.inputs if not spec.is_optional}


def _version_of(model: str, labels: Mapping[str, int], label: str) -> int:
    if label not in labels:
        listed = ", ".join(sorted(labels)) or "none"
        text = f"model '{model}': expected one of its labels ({listed}), got '{label}'"
        raise NotFoundError(f"{text}; make it with: label {model} {label} VERSION", reason="LABEL_NOT_FOUND")
    return labels[label]


def _interleaved_s(
    client: Client,
    model: str,
    versions: tuple[int, int],
    inputs: messages.Inputs,
    request_count: int,
    clock: Callable[[], float],
) -> dict[int, list[float]]:
    """Times requests to two versions in turns, each first every other time, so that what disturbs one disturbs both."""
    times: dict[int, list[float]] = {version: [] for version in versions}
    for index in range(-_WARM_COUNT, request_count):
        for version in versions if index % 2 else versions[::-1]:
            begin_s = clock()
            client.predict(model, inputs, version=version)
            if index >= 0:
                times[version].append(clock() - begin_s)
    return times


def _showing(version: int, quality: float, times_s: Sequence[float]) -> Showing:
    return Showing(version, quality, percentile_ms(times_s, 0.5), percentile_ms(times_s, 0.99))


def _first_example(details: VersionDetails, inputs: messages.Inputs) -> dict[str, Array]:
    arrays = {name: as_array(Subject.input(name), value) for name, value in named_inputs(details, inputs).items()}
    has_batch_axis = details.version.max_batch_size > 0
    return {name: array[:1] for name, array in arrays.items()} if has_batch_axis else arrays


def _zeros(spec: TensorSpec) -> Array:
    axes = spec.shape or ()
    shape = [axis if isinstance(axis, int) else (_FREE_AXIS if index else 1) for index, axis in enumerate(axes)]
    return np.full(shape, b"", object) if spec.datatype == BYTES else np.zeros(shape, NUMPY_DTYPES[spec.datatype])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
