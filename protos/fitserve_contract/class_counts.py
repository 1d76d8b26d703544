"""What a classifier got right and wrong, class by class: 3 integers per class, never a matrix of classes.

Counts add up exactly over batches, workers and machines. Shapes: C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fitserve_contract.tensor_bytes import Array


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts per class, in class order.

    Args:
        true_positives: Examples of the class that were answered with it.
        false_positives: Examples of other classes that were answered with it.
        false_negatives: Examples of the class that were answered with another, or with none.
    """

    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]
    false_negatives: tuple[int, ...]

    @staticmethod
    def of(truth: Array, predicted: Array, class_count: int) -> ClassCounts:
        """Counts answers.

        Args:
            truth: (B) integers, 0..C-1.
            predicted: (B) integers, 0..C-1; below 0 where nothing was answered.
            class_count: C.
        """
        found = np.bincount(truth[truth == predicted], minlength=class_count)
        said = np.bincount(predicted[predicted >= 0], minlength=class_count)
        there = np.bincount(truth, minlength=class_count)
        return ClassCounts(tuple(found.tolist()), tuple((said - found).tolist()), tuple((there - found).tolist()))

    @property
    def example_counts(self) -> tuple[int, ...]:
        """Examples of each class."""
        return tuple(tp + fn for tp, fn in zip(self.true_positives, self.false_negatives, strict=True))

    @property
    def predicted_counts(self) -> tuple[int, ...]:
        """Answers with each class."""
        return tuple(tp + fp for tp, fp in zip(self.true_positives, self.false_positives, strict=True))

    @property
    def recalls(self) -> tuple[float, ...]:
        """Per class TP / (TP + FN), 0..1; NaN for a class without examples."""
        return tuple(map(_share, self.true_positives, self.example_counts))

    @property
    def precisions(self) -> tuple[float, ...]:
        """Per class TP / (TP + FP), 0..1; NaN for a class that was never answered."""
        return tuple(map(_share, self.true_positives, self.predicted_counts))

    @property
    def f1_scores(self) -> tuple[float, ...]:
        """Per class 2 TP / (2 TP + FP + FN), 0..1; NaN for a class without examples and answers.

        Source: scikit-learn, `f1_score`.
        """
        totals = map(sum, zip(self.example_counts, self.predicted_counts, strict=True))
        return tuple(_share(2 * tp, total) for tp, total in zip(self.true_positives, totals, strict=True))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have examples, 0..1; NaN without examples.

        Source: scikit-learn, `balanced_accuracy_score`.
        """
        return _mean(self.recalls)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have examples or were answered, 0..1; NaN without any.

        Source: scikit-learn, `f1_score(average="macro", zero_division=0)`, which takes the same classes.
        """
        return _mean(self.f1_scores)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: tuple[float, ...]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
