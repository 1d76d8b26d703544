"""What the scores of each example come to against its label, before anything is summed.

Every row is computed by itself, so that a value does not depend on the batch it came in. Scores hold no NaN.
Shapes: B examples, C classes.
"""

from __future__ import annotations

import numpy as np

from fitserve_contract.tasks import Scores
from fitserve_contract.tensor_bytes import Array

_LOWEST_LOG = -100.0
"""Bound of each logarithm in the binary cross-entropy. Source: torch.nn.BCELoss."""


def cross_entropies(scores: Array, labels: Array, kind: Scores) -> Array:
    """Computes the cross-entropy of each example in nats, finite.

    Args:
        scores: (B, C) float64.
        labels: (B), 0..C-1.
        kind: Whether they are logits or probabilities.

    Returns:
        (B) float64.
    """
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


def binary_cross_entropies(probabilities: Array, truth: Array) -> Array:
    """Computes the mean binary cross-entropy over the labels of each example in nats.

    Args:
        probabilities: (B, C) float64.
        truth: (B, C) bool.

    Returns:
        (B) float64; empty without labels.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(truth, probabilities, 1 - probabilities).clip(min=0)).clip(min=_LOWEST_LOG)
    return np.asarray(-logs.mean(axis=1)) if logs.size else np.zeros(0)


def confidences(scores: Array, kind: Scores) -> Array:
    """Computes the probability of the best class of each example, (B) float64 in 0..1; arguments as above."""
    if not scores.size:
        return np.zeros(len(scores))
    top = scores.max(axis=1)
    if kind is Scores.PROBABILITIES:
        return np.asarray(top.clip(0, 1))
    with np.errstate(invalid="ignore", over="ignore"):
        # Infinite logits that are the best share the probability among them: their difference is undefined.
        shifted = np.where(scores == top[:, None], 0.0, scores - top[:, None])
        return np.asarray(1.0 / np.exp(shifted).sum(axis=1))


def ranks(scores: Array, labels: Array) -> Array:
    """Counts the classes before each example's label: those that score more, or the same at a lower index; (B) int."""
    picked = np.take_along_axis(scores, labels[:, None], axis=1)
    is_before = (scores > picked) | ((scores == picked) & (np.arange(scores.shape[1]) < labels[:, None]))
    return np.asarray(is_before.sum(axis=1))
