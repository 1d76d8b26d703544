"""What the numbers of an output decide, torch against ONNX Runtime: classes and labels, ties apart.

A tie is an answer that torch's own float64 scores do not decide beyond the tolerance. The class axis is the last one.
Shapes: B examples, S positions, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fitserve_contract.scoring import predicted_classes
from fitserve_contract.sums import (
    MULTI_LABEL_THRESHOLD,
    ClassificationSums,
    MultiLabelSums,
    Sums,
    TokenClassificationSums,
)
from fitserve_contract.tasks import Task, TaskKind
from fitserve_exporters.candidate.candidate import Array

MAX_LISTED: Final = 100
"""So many examples are listed by index; the counts are of all."""

_NORMAL_975: Final = 1.959963984540054
"""97.5 % quantile of the normal distribution: a two-sided interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether both decided the same over some examples.

    Args:
        example_count: Examples compared.
        same_count: Examples with the same answer.
        ties: Indices of examples that are ties, whether answered alike or not.
        tie_differences: Indices of ties that were answered differently.
        differences: Indices of examples that were answered differently and are no ties.
    """

    example_count: int
    same_count: int
    ties: tuple[int, ...] = ()
    tie_differences: tuple[int, ...] = ()
    differences: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Gives the record as the manifest writes it, indices up to MAX_LISTED."""
        return {
            "example_count": self.example_count,
            "same_count": self.same_count,
            "tie_count": len(self.ties),
            "ties": list(self.ties[:MAX_LISTED]),
            "tie_difference_count": len(self.tie_differences),
            "tie_differences": list(self.tie_differences[:MAX_LISTED]),
            "difference_count": len(self.differences),
            "differences": list(self.differences[:MAX_LISTED]),
        }


def decisions(task: Task, scores: Array) -> Array:
    """Gives what the scores decide: INT64 (B) for classes, (B, S) for classes of positions, BOOL (B, C) for labels.

    Args:
        task: One of n, one of n per position, or any of n; regression decides nothing.
        scores: (B, C), or (B, S, C) per position.
    """
    if task.kind is not TaskKind.MULTI_LABEL:
        return predicted_classes(scores)
    return np.asarray(scores >= MULTI_LABEL_THRESHOLD)


def is_different(task: Task, left: Array, right: Array) -> Array:
    """Tells for each example, or position, whether two sets of scores decide differently; BOOL (B), or (B, S)."""
    differs = decisions(task, left) != decisions(task, right)
    return np.asarray(differs.any(axis=1)) if task.kind is TaskKind.MULTI_LABEL else np.asarray(differs)


def margins(task: Task, scores: Array) -> Array:
    """Gives for each example, or position, how far its scores are from another answer, in their unit; (B), or (B, S).

    The gap of the two best scores for one of n; the least distance from the threshold for any of n.
    """
    if task.kind is not TaskKind.MULTI_LABEL:
        if scores.shape[-1] < 2:
            return np.full(scores.shape[:-1], np.inf)
        best = np.partition(scores.astype(np.float64), -2, axis=-1)
        return np.asarray(best[..., -1] - best[..., -2])
    return np.asarray(np.abs(scores.astype(np.float64) - MULTI_LABEL_THRESHOLD).min(axis=1, initial=np.inf))


def wilson_interval(success_count: int, trial_count: int) -> tuple[float, float]:
    """Computes the 95 % interval of a share.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Raises:
        ValueError: fewer than 1 trial, or successes outside 0..trials.
    """
    if trial_count < 1 or not 0 <= success_count <= trial_count:
        raise ValueError(
            f"Wilson interval: expected 0..trials successes of at least 1, got {success_count} of {trial_count}"
        )
    z2, share = _NORMAL_975**2, success_count / trial_count
    centre = share + z2 / (2 * trial_count)
    spread = _NORMAL_975 * math.sqrt(share * (1 - share) / trial_count + z2 / (4 * trial_count**2))
    scale = 1 + z2 / trial_count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def metrics_of(sums: Sums) -> dict[str, Any]:
    """Gives the figures of a task's sums for the manifest; a share of examples has its Wilson interval beside it."""
    if isinstance(sums, ClassificationSums):
        return _share("accuracy", sums.correct_count, sums.example_count) | _class_metrics(sums)
    if isinstance(sums, TokenClassificationSums):
        return _token_metrics(sums)
    if isinstance(sums, MultiLabelSums):
        exact = _share("exact_match", sums.exact_match_count, sums.example_count)
        figures = {"micro_f1": sums.micro_f1, "macro_f1": sums.macro_f1, "mean_loss": sums.mean_loss}
        return exact | {name: finite(value) for name, value in figures.items()}
    values = {"mse": finite(sums.mse), "mae": finite(sums.mae), "r_squared": finite(sums.r_squared)}
    return {"example_count": sums.example_count, **values}


def _class_metrics(sums: ClassificationSums) -> dict[str, Any]:
    """Gives the figures that look at classes; `recalls` has one per class, in class order, None without examples."""
    figures: dict[str, Any] = {}
    if counts := sums.per_class:
        figures = {
            "balanced_accuracy": finite(counts.balanced_accuracy),
            "macro_f1": finite(counts.macro_f1),
            "recalls": [finite(recall) for recall in counts.recalls],
        }
    return {"mean_loss": finite(sums.mean_loss), **figures}


def _token_metrics(sums: TokenClassificationSums) -> dict[str, Any]:
    """Gives the figures of the positions that count, whose accuracy has no interval: they depend on each other."""
    positions = sums.positions
    return {
        **_share("exact_match", sums.exact_match_count, sums.example_count),
        "position_count": positions.example_count,
        "correct_position_count": positions.correct_count,
        "accuracy": finite(positions.accuracy),
        **_class_metrics(positions),
    }


def finite(value: float) -> float | None:
    """Gives a figure that JSON can say: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def listed(indices: Sequence[int]) -> str:
    """Writes indices for people, the first ten."""
    shown = ", ".join(map(str, indices[:10]))
    return shown + (f", … ({len(indices)} in all)" if len(indices) > 10 else "")


def _share(name: str, success_count: int, trial_count: int) -> dict[str, Any]:
    low, high = wilson_interval(success_count, trial_count)
    count = "correct_count" if name == "accuracy" else f"{name}_count"
    return {
        "example_count": trial_count,
        count: success_count,
        name: success_count / trial_count,
        f"{name}_interval_95": [low, high],
    }
