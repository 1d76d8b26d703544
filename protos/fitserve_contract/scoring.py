"""Scores one batch of a model's outputs against its labels, as sums that merge exactly.

The class axis is the last one. Shapes: B examples, S positions, C classes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from fitserve_contract.class_counts import ClassCounts
from fitserve_contract.example_scores import binary_cross_entropies, confidences, cross_entropies, ranks
from fitserve_contract.sums import (
    FRACTION_BITS,
    MULTI_LABEL_THRESHOLD,
    ClassificationSums,
    ExactSum,
    MultiLabelSums,
    RegressionSums,
    Sums,
    TokenClassificationSums,
)
from fitserve_contract.tasks import IGNORED_LABEL, Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array, shape_text

MAX_CONFUSION_CLASSES = 128
"""A confusion matrix of more classes would make the answer to every batch larger than the batch."""

TOP_COUNT = 5
"""Top-k is counted for k = 1 to this."""

CALIBRATION_BINS = 15
"""Intervals of confidence. Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 4."""

_LOW_HALF = (1 << (FRACTION_BITS // 2)) - 1

_LARGEST_LABEL = 2.0**480
"""The square of a larger label leaves float64 once it is scaled to the unit."""

SCORED_AXES: Final = {
    TaskKind.CLASSIFICATION: ("B",),
    TaskKind.MULTI_LABEL: ("B",),
    TaskKind.TOKEN_CLASSIFICATION: ("B", "S"),
}
"""Axes of a scored output before its class axis."""

_FITTING_KINDS: Final = {
    (TaskKind.CLASSIFICATION, 3): TaskKind.TOKEN_CLASSIFICATION,
    (TaskKind.TOKEN_CLASSIFICATION, 2): TaskKind.CLASSIFICATION,
}
"""The kind that an output of so many axes is for where its task is of another."""


def score(task: Task, scores: Array, labels: Array) -> Sums:
    """Scores one batch of outputs against its labels.

    Args:
        task: The model's task.
        scores: The task's output. (B, C) for one or any of n, (B, S, C) for one of n per position; (B, ...) for
            regression.
        labels: As TaskKind says.

    Raises:
        ValueError: labels of another length, datatype or shape than the task's, or outside its classes.
    """
    check_labels(task, labels, scores.shape)
    if task.kind is TaskKind.CLASSIFICATION:
        return _score_classes(scores.astype(np.float64), labels, task.scores)
    if task.kind is TaskKind.TOKEN_CLASSIFICATION:
        return _score_positions(scores.astype(np.float64), labels, task.scores)
    if task.kind is TaskKind.MULTI_LABEL:
        return _score_labels(scores.astype(np.float64), labels.astype(bool))
    return _score_values(scores.astype(np.float64), labels.astype(np.float64))


def check_labels(task: Task, labels: Array, output_shape: tuple[int, ...]) -> None:
    """Checks labels against the task and the shape of the output they are for.

    Raises:
        ValueError: they do not fit; the message says what was expected and found.
    """
    if task.kind is TaskKind.REGRESSION:
        _check_shape(labels, output_shape)
        if not (np.abs(labels.astype(np.float64)) <= _LARGEST_LABEL).all():
            raise ValueError(
                f"labels: expected finite numbers of at most {_LARGEST_LABEL:g}, got NaN, infinity or more"
            )
        return
    if fault := output_fault(task, output_shape):
        raise ValueError(fault)
    _check_shape(labels, output_shape if task.kind is TaskKind.MULTI_LABEL else output_shape[:-1])
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels: expected integers, got {labels.dtype}")
    top = 1 if task.kind is TaskKind.MULTI_LABEL else output_shape[-1] - 1
    is_per_position = task.kind is TaskKind.TOKEN_CLASSIFICATION
    counted = labels[labels != IGNORED_LABEL] if is_per_position else labels
    if counted.size and (counted.min() < 0 or counted.max() > top):
        worst = counted.min() if counted.min() < 0 else counted.max()
        also = f", or {IGNORED_LABEL} where a position does not count" if is_per_position else ""
        raise ValueError(f"labels: expected 0..{top}{also}, got {worst}")


def output_fault(task: Task, shape: tuple[int | str | None, ...]) -> str:
    """Says why an output cannot be scored: its number of axes, or the size of its class axis; empty where it can.

    The class axis is the last one. An axis that is no number may have any size.
    """
    if task.kind is TaskKind.REGRESSION:
        return ""
    count, axes = len(task.class_names), SCORED_AXES[task.kind]
    expected = f"({', '.join((*axes, str(count)))})"
    text = f"output '{task.output}': expected shape {expected} for {task.kind} of {count} classes, got "
    if len(shape) != len(axes) + 1:
        other = _FITTING_KINDS.get((task.kind, len(shape)))
        return f"{text}{_axes_text(shape)}" + (f"; such an output is scored by the task {other}" if other else "")
    if not isinstance(shape[-1], int) or shape[-1] == count:
        return ""
    cure = "; move the classes to the last axis" if count in shape[1:-1] else "; give one class name per class"
    return f"{text}{_axes_text(shape)}{cure}"


def _axes_text(shape: tuple[int | str | None, ...]) -> str:
    return f"({', '.join('?' if axis is None else str(axis) for axis in shape)})"


def _check_shape(labels: Array, expected: tuple[int, ...]) -> None:
    if labels.shape != expected:
        raise ValueError(f"labels: expected shape {shape_text(expected)}, got {shape_text(labels.shape)}")


def _score_positions(scores: Array, labels: Array, kind: Scores) -> TokenClassificationSums:
    is_counted: Array = labels != IGNORED_LABEL
    is_nan: Array = np.any(np.isnan(scores), axis=2)
    is_right = (predicted_classes(scores) == labels) & ~is_nan
    return TokenClassificationSums(
        example_count=len(scores),
        exact_match_count=int((is_right | ~is_counted).all(axis=1).sum()),
        positions=_score_classes(scores[is_counted], labels[is_counted], kind),
    )


def _score_classes(scores: Array, labels: Array, kind: Scores) -> ClassificationSums:
    is_nan: Array = np.any(np.isnan(scores), axis=1)
    kept, truth = scores[~is_nan], labels[~is_nan].astype(np.int64)
    predicted = predicted_classes(kept)
    is_correct = predicted == truth
    is_tie = (kept == kept.max(axis=1, keepdims=True)).sum(axis=1) > 1 if len(kept) else np.zeros(0, bool)
    answers = np.full(len(scores), -1)
    answers[~is_nan] = predicted
    counts = ClassCounts.of(labels.astype(np.int64), answers, scores.shape[1])
    return ClassificationSums(
        example_count=len(scores),
        correct_count=int(is_correct.sum()),
        loss=ExactSum.of(cross_entropies(kept, truth, kind)),
        tie_count=int(is_tie.sum()),
        nan_count=int(is_nan.sum()),
        confusion_counts=_confusion(truth, predicted, scores.shape[1]),
        top_counts=_top_counts(kept, truth),
        true_positive_counts=counts.true_positives,
        false_positive_counts=counts.false_positives,
        false_negative_counts=counts.false_negatives,
        **_calibration(confidences(kept, kind), is_correct),
    )


def predicted_classes(scores: Array) -> Array:
    """Picks the class of each row, the lowest index of the largest score: (..., C) to (...) int64."""
    return np.asarray(scores.argmax(axis=-1)) if scores.size else np.zeros(scores.shape[:-1], np.int64)


def _confusion(truth: Array, predicted: Array, class_count: int) -> tuple[int, ...]:
    if class_count > MAX_CONFUSION_CLASSES:
        return ()
    return tuple(np.bincount(truth * class_count + predicted, minlength=class_count**2).tolist())


def _top_counts(scores: Array, truth: Array) -> tuple[int, ...]:
    found = ranks(scores, truth)
    return tuple(int((found < k).sum()) for k in range(1, TOP_COUNT + 1))


def _calibration(shares: Array, is_correct: Array) -> dict[str, Any]:
    bins = np.ceil(shares * CALIBRATION_BINS).astype(np.int64).clip(1, CALIBRATION_BINS) - 1
    units = np.rint(np.ldexp(shares, FRACTION_BITS)).astype(np.int64)
    # Each half of a sum stays far below 2^53, up to which float64 counts exactly.
    low, high = _binned(bins, units & _LOW_HALF), _binned(bins, units >> (FRACTION_BITS // 2))
    totals = [(top << (FRACTION_BITS // 2)) + rest for top, rest in zip(high, low, strict=True)]
    return {
        "bin_counts": tuple(_binned(bins, np.ones(len(bins)))),
        "bin_correct_counts": tuple(_binned(bins, is_correct)),
        "bin_confidences": tuple(ExactSum(total) for total in totals),
    }


def _binned(bins: Array, weights: Array) -> list[int]:
    sums = np.bincount(bins, weights=weights, minlength=CALIBRATION_BINS)
    return [int(total) for total in sums.tolist()]


def _score_labels(probabilities: Array, truth: Array) -> MultiLabelSums:
    is_nan: Array = np.any(np.isnan(probabilities), axis=1)
    predicted = (probabilities >= MULTI_LABEL_THRESHOLD) & ~is_nan[:, None]
    kept, kept_truth = probabilities[~is_nan], truth[~is_nan]
    return MultiLabelSums(
        example_count=len(truth),
        exact_match_count=int(((predicted == truth).all(axis=1) & ~is_nan).sum()),
        true_positive_counts=_per_label(predicted & truth),
        false_positive_counts=_per_label(predicted & ~truth),
        false_negative_counts=_per_label(~predicted & truth),
        loss=ExactSum.of(binary_cross_entropies(kept, kept_truth)),
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
