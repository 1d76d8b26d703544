"""What the scores of a task mean in words: class names with probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fitserve_contract.sums import MULTI_LABEL_THRESHOLD
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array

TOP_COUNT: Final = 3


@dataclass(frozen=True, slots=True)
class NamedClass:
    """A class and its probability, 0..1, or NaN where its scores hold NaN."""

    name: str
    probability: float


def named_classes(task: Task, scores: Array) -> list[tuple[NamedClass, ...]] | None:
    """Names the classes of each example.

    Args:
        task: The model's task.
        scores: The task's output, (B, C).

    Returns:
        Per example: the three likeliest classes, the lowest index first on a tie; for multi-label those that are
        predicted, likeliest first, maybe none. None where the task has no classes or the shape is not (B, C).
    """
    if not task.class_names or scores.ndim != 2 or scores.shape[1] != len(task.class_names):
        return None
    wide = scores.astype(np.float64)
    probabilities = softmax(wide) if task.scores is Scores.LOGITS else wide
    return [_named(task, row) for row in probabilities]


def softmax(logits: Array) -> Array:
    """Computes the softmax of each row of (B, C) in float64; infinite logits share the probability among them."""
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(np.where(logits == logits.max(axis=1, keepdims=True), 0.0, shifted))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _named(task: Task, probabilities: Array) -> tuple[NamedClass, ...]:
    order = np.argsort(-probabilities, kind="stable")
    if task.kind is TaskKind.MULTI_LABEL:
        kept = [index for index in order if probabilities[index] >= MULTI_LABEL_THRESHOLD]
    else:
        kept = list(order[:TOP_COUNT])
    return tuple(NamedClass(task.class_names[index], float(probabilities[index])) for index in kept)
