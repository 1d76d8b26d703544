"""Scores against labels as sums that merge exactly.

Counts are integers. A real addend is rounded once, to a multiple of 2^-40, and summed as an integer from there on: so
merging is associative and commutative to the last bit, whatever the order and the partition.
Shapes: B examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any, Self, TypeAlias

import numpy as np

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array, shape_text

FRACTION_BITS = 40
"""Unit of a real sum: 2^-40, about 9.1e-13."""

MULTI_LABEL_THRESHOLD = 0.5
"""A label is predicted where its probability is at least this."""

_LOWEST_LOG = -100.0
"""Bound of each logarithm in the binary cross-entropy. Source: torch.nn.BCELoss."""


_LARGEST_LABEL = 2.0**480
"""The square of a larger label leaves float64 once it is scaled to the unit."""


@dataclass(frozen=True, slots=True)
class ExactSum:
    """A sum in units of 2^-`fraction_bits`."""

    units: int = 0
    fraction_bits: int = FRACTION_BITS

    @staticmethod
    def of(addends: Array) -> ExactSum:
        """Sums finite reals, each rounded once (ties to even) to the unit. Scaling by 2^40 is exact in float64.

        Raises:
            ValueError: an addend is not finite.
        """
        scaled = np.rint(np.ldexp(np.asarray(addends, np.float64).reshape(-1), FRACTION_BITS))
        if not np.isfinite(scaled).all():
            raise ValueError("exact sum: expected finite addends, got NaN or infinity")
        return ExactSum(sum(map(int, scaled.tolist())))

    def __add__(self, other: ExactSum) -> ExactSum:
        if self.fraction_bits != other.fraction_bits:
            raise ValueError(f"exact sum: expected a unit of 2^-{self.fraction_bits}, got 2^-{other.fraction_bits}")
        return ExactSum(self.units + other.units, self.fraction_bits)

    def __float__(self) -> float:
        """The sum, correctly rounded to float64."""
        return self.units / (1 << self.fraction_bits)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Adds field by field: integers and exact sums with `+`, tuples element by element."""

    example_count: int = 0

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            raise TypeError(f"sums: expected {type(self).__name__}, got {type(other).__name__}")
        merged: dict[str, Any] = {f.name: _add(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return type(self)(**merged)


def _add(left: int | ExactSum | tuple[int, ...], right: int | ExactSum | tuple[int, ...]) -> object:
    if isinstance(left, tuple) and isinstance(right, tuple):
        if not left or not right:
            return left or right
        if len(left) != len(right):
            raise ValueError(f"sums: expected {len(left)} labels, got {len(right)}")
        return tuple(a + b for a, b in zip(left, right, strict=True))
    return left + right  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class ClassificationSums(_Sums):
    """One-of-n: the predicted class is the lowest index of the largest score."""

    correct_count: int = 0
    loss: ExactSum = field(default_factory=ExactSum)
    tie_count: int = 0
    nan_count: int = 0

    @property
    def accuracy(self) -> float:
        """Share of examples answered right, 0..1; NaN without examples."""
        return _ratio(self.correct_count, self.example_count)

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy in nats over the examples without NaN."""
        return _ratio(float(self.loss), self.example_count - self.nan_count)


@dataclass(frozen=True, slots=True)
class MultiLabelSums(_Sums):
    """Any-of-n at threshold 0.5; the tuples have one count per label."""

    exact_match_count: int = 0
    true_positive_counts: tuple[int, ...] = ()
    false_positive_counts: tuple[int, ...] = ()
    false_negative_counts: tuple[int, ...] = ()
    loss: ExactSum = field(default_factory=ExactSum)
    nan_count: int = 0

    @property
    def exact_match(self) -> float:
        """Share of examples whose whole label set is right, 0..1."""
        return _ratio(self.exact_match_count, self.example_count)

    @property
    def precisions(self) -> tuple[float, ...]:
        """Per label TP / (TP + FP), 0 where nothing was predicted."""
        return tuple(
            tp / max(tp + fp, 1) for tp, fp in zip(self.true_positive_counts, self.false_positive_counts, strict=True)
        )

    @property
    def recalls(self) -> tuple[float, ...]:
        """Per label TP / (TP + FN), 0 where nothing is true."""
        return tuple(
            tp / max(tp + fn, 1) for tp, fn in zip(self.true_positive_counts, self.false_negative_counts, strict=True)
        )

    @property
    def f1_scores(self) -> tuple[float, ...]:
        """Per label 2 TP / (2 TP + FP + FN), 0 where undefined. Source: scikit-learn `f1_score`, zero_division=0."""
        counts = zip(self.true_positive_counts, self.false_positive_counts, self.false_negative_counts, strict=True)
        return tuple(2 * tp / max(2 * tp + fp + fn, 1) for tp, fp, fn in counts)

    @property
    def macro_f1(self) -> float:
        """Mean over labels of F1."""
        return _ratio(sum(self.f1_scores), len(self.f1_scores))

    @property
    def micro_f1(self) -> float:
        """F1 of the counts summed over labels."""
        tp, fp, fn = map(sum, (self.true_positive_counts, self.false_positive_counts, self.false_negative_counts))
        return 2 * tp / max(2 * tp + fp + fn, 1)

    @property
    def mean_loss(self) -> float:
        """Mean over examples of the mean binary cross-entropy over labels, in nats."""
        return _ratio(float(self.loss), self.example_count - self.nan_count)


@dataclass(frozen=True, slots=True)
class RegressionSums(_Sums):
    """Real values, summed over every element of the output."""

    value_count: int = 0
    squared_error: ExactSum = field(default_factory=ExactSum)
    absolute_error: ExactSum = field(default_factory=ExactSum)
    label: ExactSum = field(default_factory=ExactSum)
    label_squared: ExactSum = field(default_factory=ExactSum)
    nan_count: int = 0

    @property
    def mse(self) -> float:
        """Mean squared error over the values whose prediction is finite."""
        return _ratio(float(self.squared_error), self.value_count - self.nan_count)

    @property
    def mae(self) -> float:
        """Mean absolute error over the values whose prediction is finite."""
        return _ratio(float(self.absolute_error), self.value_count - self.nan_count)

    @property
    def r_squared(self) -> float:
        """1 - SSE / SST; NaN where the labels do not vary or a prediction was not finite."""
        n, unit = self.value_count, 1 << self.label.fraction_bits
        total = n * self.label_squared.units * unit - self.label.units**2
        return 1.0 - n * self.squared_error.units * unit / total if total > 0 and not self.nan_count else float("nan")


Sums: TypeAlias = ClassificationSums | MultiLabelSums | RegressionSums


def merge(parts: list[Sums]) -> Sums:
    """Adds partial sums of one task; the order does not matter.

    Raises:
        ValueError: there are none, or they differ in unit or in number of labels.
        TypeError: they are of different tasks.
    """
    if not parts:
        raise ValueError("sums: expected at least one part, got none")
    return reduce(lambda left, right: left + right, parts)  # type: ignore[operator]


def score(task: Task, scores: Array, labels: Array) -> Sums:
    """Scores one batch of outputs against its labels.

    Args:
        task: The model's task.
        scores: The task's output. (B, C) for both classification kinds; (B, ...) for regression.
        labels: As TaskKind says.

    Raises:
        ValueError: labels of another length, datatype or shape than the task's, or outside its classes.
    """
    check_labels(task, labels, scores.shape)
    if task.kind is TaskKind.CLASSIFICATION:
        return _score_classes(scores.astype(np.float64), labels, task.scores)
    if task.kind is TaskKind.MULTI_LABEL:
        return _score_labels(scores.astype(np.float64), labels.astype(bool))
    return _score_values(scores.astype(np.float64), labels.astype(np.float64))


def check_labels(task: Task, labels: Array, output_shape: tuple[int, ...]) -> None:
    """Holds labels against the task and the shape of the output they are for.

    Raises:
        ValueError: they do not fit; the message says what was expected and found.
    """
    expected = output_shape[:1] if task.kind is TaskKind.CLASSIFICATION else output_shape
    if task.kind is not TaskKind.REGRESSION and len(output_shape) != 2:
        raise ValueError(
            f"output '{task.output}': expected shape (B, classes) to score, got {shape_text(output_shape)}"
        )
    if labels.shape != expected:
        raise ValueError(f"labels: expected shape {shape_text(expected)}, got {shape_text(labels.shape)}")
    if task.kind is TaskKind.REGRESSION:
        if not (np.abs(labels.astype(np.float64)) <= _LARGEST_LABEL).all():
            raise ValueError(
                f"labels: expected finite numbers of at most {_LARGEST_LABEL:g}, got NaN, infinity or more"
            )
        return
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels: expected integers, got {labels.dtype}")
    top = output_shape[1] - 1 if task.kind is TaskKind.CLASSIFICATION else 1
    if labels.size and (labels.min() < 0 or labels.max() > top):
        worst = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"labels: expected 0..{top}, got {worst}")


def _score_classes(scores: Array, labels: Array, kind: Scores) -> ClassificationSums:
    is_nan = np.isnan(scores).any(axis=1)
    kept, kept_labels = scores[~is_nan], labels[~is_nan]
    is_correct = kept.argmax(axis=1) == kept_labels if len(kept) else np.zeros(0, bool)
    is_tie = (kept == kept.max(axis=1, keepdims=True)).sum(axis=1) > 1 if len(kept) else np.zeros(0, bool)
    return ClassificationSums(
        example_count=len(scores),
        correct_count=int(is_correct.sum()),
        loss=ExactSum.of(_cross_entropies(kept, kept_labels, kind)),
        tie_count=int(is_tie.sum()),
        nan_count=int(is_nan.sum()),
    )


def _cross_entropies(scores: Array, labels: Array, kind: Scores) -> Array:
    """(B, C) scores without NaN to (B) finite cross-entropies."""
    if not len(scores):
        return np.zeros(0)
    picked = np.take_along_axis(scores, labels.astype(np.int64)[:, None], axis=1)[:, 0]
    with np.errstate(all="ignore"):
        if kind is Scores.PROBABILITIES:
            nats: Array = -np.log(np.maximum(picked, 0))
            return nats.clip(0, -_LOWEST_LOG)
        top = scores.max(axis=1)
        losses = np.log(np.exp(scores - top[:, None]).sum(axis=1)) - (picked - top)
    # Infinite logits make the difference undefined: right beyond doubt costs nothing, wrong beyond doubt the bound.
    beyond = np.where(picked == top, 0.0, np.finfo(np.float32).max)
    finite: Array = np.where(np.isfinite(losses), losses, beyond)
    return finite


def _score_labels(probabilities: Array, truth: Array) -> MultiLabelSums:
    is_nan: Array = np.any(np.isnan(probabilities), axis=1)
    predicted = (probabilities >= MULTI_LABEL_THRESHOLD) & ~is_nan[:, None]
    kept, kept_truth = probabilities[~is_nan], truth[~is_nan]
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(kept_truth, kept, 1 - kept).clip(min=0)).clip(min=_LOWEST_LOG)
    return MultiLabelSums(
        example_count=len(truth),
        exact_match_count=int(((predicted == truth).all(axis=1) & ~is_nan).sum()),
        true_positive_counts=_per_label(predicted & truth),
        false_positive_counts=_per_label(predicted & ~truth),
        false_negative_counts=_per_label(~predicted & truth),
        loss=ExactSum.of(-logs.mean(axis=1) if logs.size else np.zeros(0)),
        nan_count=int(is_nan.sum()),
    )


def _per_label(hits: Array) -> tuple[int, ...]:
    return tuple(int(count) for count in hits.sum(axis=0))


def _score_values(values: Array, labels: Array) -> RegressionSums:
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite: Array = np.isfinite(np.ldexp(np.square(values - labels), FRACTION_BITS))
    errors = (values - labels)[is_finite]
    return RegressionSums(
        example_count=len(values),
        value_count=values.size,
        squared_error=ExactSum.of(errors * errors),
        absolute_error=ExactSum.of(np.abs(errors)),
        label=ExactSum.of(labels),
        label_squared=ExactSum.of(labels * labels),
        nan_count=int((~is_finite).sum()),
    )


def _ratio(total: float, count: int) -> float:
    return total / count if count else float("nan")
