"""What two versions did on the same examples, example by example, in a form that merges exactly.

Counts are integers and a loss is rounded once to a multiple of 2^-40, so that sums of losses are exact in any order.
Shapes: B examples, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Final, NamedTuple

import numpy as np

from fitserve_contract.example_scores import binary_cross_entropies
from fitserve_contract.scoring import check_labels, predicted_classes
from fitserve_contract.sums import FRACTION_BITS, MULTI_LABEL_THRESHOLD
from fitserve_contract.tasks import IGNORED_LABEL, Task, TaskKind
from fitserve_contract.tensor_bytes import Array

MAX_LISTED: Final = 1000
"""So many examples that are answered differently are listed; the count is of all."""


@dataclass(frozen=True, slots=True)
class PairedSums:
    """Paired outcomes; fields as in `fitserve.inference.v1.PairedSums`.

    Args:
        example_count: Sum of the four counts that follow.
        both_count: Both were right: the class, the whole set of labels, or every position that counts. Regression has
            nothing right or wrong.
        first_only_count: The first alone was right.
        second_only_count: The second alone was right.
        neither_count: Neither was right; all examples of a regression.
        difference_count: Examples that were answered differently.
        difference_indices: The first of these, ascending, at most MAX_LISTED.
        first_losses: Loss of each example under the first; none for one of n.
        second_losses: The same under the second, in the same order.
    """

    example_count: int = 0
    both_count: int = 0
    first_only_count: int = 0
    second_only_count: int = 0
    neither_count: int = 0
    difference_count: int = 0
    difference_indices: tuple[int, ...] = ()
    first_losses: tuple[float, ...] = ()
    second_losses: tuple[float, ...] = ()

    def __add__(self, other: PairedSums) -> PairedSums:
        return PairedSums(
            self.example_count + other.example_count,
            self.both_count + other.both_count,
            self.first_only_count + other.first_only_count,
            self.second_only_count + other.second_only_count,
            self.neither_count + other.neither_count,
            self.difference_count + other.difference_count,
            tuple(sorted(self.difference_indices + other.difference_indices)[:MAX_LISTED]),
            self.first_losses + other.first_losses,
            self.second_losses + other.second_losses,
        )


def merge_pairs(parts: list[PairedSums]) -> PairedSums:
    """Adds paired sums; the order matters to nothing but the order of the losses."""
    return reduce(lambda left, right: left + right, parts, PairedSums())


def pair(task: Task, first: Array, second: Array, labels: Array, indices: Array) -> PairedSums:
    """Holds two versions' outputs on one batch against each other and against the labels.

    Args:
        task: Of both.
        first: The first version's task output, as for `score`.
        second: The second version's.
        labels: As TaskKind says.
        indices: (B) integers: what each example is called in `difference_indices`.

    Raises:
        ValueError: the labels do not fit one of the outputs, as where these differ in shape.
    """
    check_labels(task, labels, first.shape)
    check_labels(task, labels, second.shape)
    one, other = (_judged(task, scores.astype(np.float64), labels) for scores in (first, second))
    is_same = (one.answers == other.answers) | ((one.answers != one.answers) & (other.answers != other.answers))
    is_different = ~_rows(is_same).all(axis=1)
    is_known = np.isfinite(one.losses) & np.isfinite(other.losses)
    return PairedSums(
        example_count=len(first),
        both_count=int((one.is_right & other.is_right).sum()),
        first_only_count=int((one.is_right & ~other.is_right).sum()),
        second_only_count=int((~one.is_right & other.is_right).sum()),
        neither_count=int((~one.is_right & ~other.is_right).sum()),
        difference_count=int(is_different.sum()),
        difference_indices=tuple(sorted(indices[is_different].tolist())[:MAX_LISTED]),
        first_losses=tuple(_rounded(one.losses[is_known]).tolist()),
        second_losses=tuple(_rounded(other.losses[is_known]).tolist()),
    )


class _Judged(NamedTuple):
    """One version on a batch: answers (B, ...), whether each is right (B), losses (B) or none."""

    answers: Array
    is_right: Array
    losses: Array


def _judged(task: Task, scores: Array, labels: Array) -> _Judged:
    if task.kind is TaskKind.REGRESSION:
        return _Judged(scores, np.zeros(len(scores), bool), _squared_errors(scores, labels.astype(np.float64)))
    if task.kind is TaskKind.TOKEN_CLASSIFICATION:
        return _judged_positions(scores, labels)
    is_nan: Array = np.any(np.isnan(scores), axis=1)
    if task.kind is TaskKind.CLASSIFICATION:
        classes = np.where(is_nan, -1, predicted_classes(scores))
        return _Judged(classes, classes == labels, np.zeros(0))
    truth = labels.astype(bool)
    losses = np.full(len(scores), np.nan)
    losses[~is_nan] = binary_cross_entropies(scores[~is_nan], truth[~is_nan])
    # A row with NaN predicts nothing, as in the sums, and is never right.
    sets = (scores >= MULTI_LABEL_THRESHOLD) & ~is_nan[:, None]
    return _Judged(sets, (sets == truth).all(axis=1) & ~is_nan, losses)


def _judged_positions(scores: Array, labels: Array) -> _Judged:
    """An example is right where every position that counts is; the others take part in nothing."""
    is_counted: Array = labels != IGNORED_LABEL
    classes = np.where(np.any(np.isnan(scores), axis=-1), -1, predicted_classes(scores))
    classes = np.where(is_counted, classes, IGNORED_LABEL)
    return _Judged(classes, np.asarray((classes == labels).all(axis=1)), np.zeros(0))


def _rows(values: Array) -> Array:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _squared_errors(values: Array, labels: Array) -> Array:
    """Mean squared errors over the elements of each example, (B); NaN where it cannot be scaled to the unit."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = _rows(np.square(values - labels))
        means = errors.mean(axis=1) if errors.shape[1] else np.zeros(len(values))
        return np.where(np.isfinite(np.ldexp(means, FRACTION_BITS)), means, np.nan)


def _rounded(losses: Array) -> Array:
    """Rounds to multiples of 2^-40; both scalings are exact in float64."""
    return np.asarray(np.ldexp(np.rint(np.ldexp(losses, FRACTION_BITS)), -FRACTION_BITS))
