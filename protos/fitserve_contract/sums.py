"""Scores against labels as sums that merge exactly.

Counts are integers. A real addend is rounded once, to a multiple of 2^-40, and summed as an integer from there on: so
merging is associative and commutative to the last bit, whatever the order and the partition.
Shapes: B examples, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any, Self, TypeAlias

import numpy as np

from fitserve_contract.class_counts import ClassCounts
from fitserve_contract.tensor_bytes import Array

FRACTION_BITS = 40
"""Unit of a real sum: 2^-40, about 9.1e-13."""

MULTI_LABEL_THRESHOLD = 0.5
"""A label is predicted where its probability is at least this."""


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


def _add(left: int | ExactSum | tuple[Any, ...], right: int | ExactSum | tuple[Any, ...]) -> object:
    if isinstance(left, tuple) and isinstance(right, tuple):
        if not left or not right:
            return left or right
        if len(left) != len(right):
            raise ValueError(f"sums: expected {len(left)} counts, got {len(right)}")
        return tuple(a + b for a, b in zip(left, right, strict=True))
    return left + right  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class ClassificationSums(_Sums):
    """One-of-n: the predicted class is the lowest index of the largest score.

    Args:
        confusion_counts: At [true * C + predicted]; empty for more than MAX_CONFUSION_CLASSES, and from older servers.
        top_counts: Examples whose label is among the k best classes, at k - 1.
        bin_counts: Examples by confidence, the probability of the predicted class; bin i of n holds
            i/n < confidence <= (i + 1)/n.
        bin_correct_counts: Those answered right.
        bin_confidences: Sums of their confidences.
        true_positive_counts: Examples of each class that were answered with it; none from older servers.
        false_positive_counts: Examples of other classes that were answered with it.
        false_negative_counts: Examples of it that were not, those with NaN among them.
    """

    correct_count: int = 0
    loss: ExactSum = field(default_factory=ExactSum)
    tie_count: int = 0
    nan_count: int = 0
    confusion_counts: tuple[int, ...] = ()
    top_counts: tuple[int, ...] = ()
    bin_counts: tuple[int, ...] = ()
    bin_correct_counts: tuple[int, ...] = ()
    bin_confidences: tuple[ExactSum, ...] = ()
    true_positive_counts: tuple[int, ...] = ()
    false_positive_counts: tuple[int, ...] = ()
    false_negative_counts: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of examples answered right, 0..1; NaN without examples."""
        return _ratio(self.correct_count, self.example_count)

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy in nats over the examples without NaN."""
        return _ratio(float(self.loss), self.example_count - self.nan_count)

    @property
    def per_class(self) -> ClassCounts | None:
        """Counts by class; None where they do not cover every example, as in a merge with sums of older servers."""
        counts = ClassCounts(self.true_positive_counts, self.false_positive_counts, self.false_negative_counts)
        is_complete = bool(self.true_positive_counts) and sum(counts.example_counts) == self.example_count
        return counts if is_complete else None

    @property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Counts by true class (rows) and predicted class (columns); empty where they were not counted."""
        size = math.isqrt(len(self.confusion_counts))
        return tuple(self.confusion_counts[row * size : (row + 1) * size] for row in range(size))

    @property
    def top_accuracies(self) -> tuple[float, ...]:
        """Share of examples whose label is among the k best, at k - 1."""
        return tuple(_ratio(count, self.example_count) for count in self.top_counts)

    @property
    def top_shares(self) -> dict[int, float]:
        """Shares of `top_accuracies` by k, without k = 1 and without a k of all classes, which no label misses."""
        class_count = math.isqrt(len(self.confusion_counts)) or math.inf
        return {k: share for k, share in enumerate(self.top_accuracies, 1) if 1 < k < class_count}

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0..1: mean |accuracy - confidence| of the bins, weighted by their examples.

        Source: Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.
        """
        pairs = zip(self.bin_correct_counts, self.bin_confidences, strict=True)
        gaps = [abs((correct << total.fraction_bits) - total.units) for correct, total in pairs]
        unit = 1 << (self.bin_confidences[0].fraction_bits if gaps else 0)
        return _ratio(sum(gaps) / unit, sum(self.bin_counts))


@dataclass(frozen=True, slots=True)
class TokenClassificationSums(_Sums):
    """One-of-n per position, over the positions that count.

    Args:
        exact_match_count: Examples without a wrong position among those that count.
        positions: Sums in which each position that counts is an example.
    """

    exact_match_count: int = 0
    positions: ClassificationSums = field(default_factory=ClassificationSums)

    @property
    def exact_match(self) -> float:
        """Share of examples without a wrong position, 0..1; NaN without examples."""
        return _ratio(self.exact_match_count, self.example_count)


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


Sums: TypeAlias = ClassificationSums | TokenClassificationSums | MultiLabelSums | RegressionSums


def merge(parts: list[Sums]) -> Sums:
    """Adds partial sums of one task; the order does not matter.

    Raises:
        ValueError: there are none, or they differ in unit or in number of labels.
        TypeError: they are of different tasks.
    """
    if not parts:
        raise ValueError("sums: expected at least one part, got none")
    return reduce(lambda left, right: left + right, parts)  # type: ignore[operator]


def _ratio(total: float, count: int) -> float:
    return total / count if count else float("nan")
