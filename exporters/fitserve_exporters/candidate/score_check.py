"""Checks that a task's scores are what the task calls them: Evaluate takes logarithms of probabilities.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.errors import ExportError

_SLACK: Final = 1e-2
"""A row of half precision sums to 1 within this, also over a thousand classes."""


def check_scores(task: Task, answers: Array) -> None:
    """Checks answers against a task of probabilities.

    Args:
        task: Of any kind.
        answers: Its output on some examples, (B, C) or (B, ..., C). Rows with NaN are left to the verification.

    Raises:
        ExportError: some are outside 0..1, or rows of one of C classes do not sum to 1.
    """
    if task.scores is not Scores.PROBABILITIES:
        return
    rows = answers.reshape(-1, answers.shape[-1]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return
    is_one_of = task.kind is not TaskKind.MULTI_LABEL
    sums = rows.sum(axis=1)
    is_beyond = rows.min() < -_SLACK or rows.max() > 1 + _SLACK
    if is_beyond or (is_one_of and np.abs(sums - 1).max() > _SLACK):
        found = (
            f"numbers from {rows.min():.3g} to {rows.max():.3g}"
            if is_beyond
            else f"rows that sum to {sums.min():.3g} to {sums.max():.3g}"
        )
        cure = "say Scores.LOGITS, or return softmax(dim=-1)" if is_one_of else "return torch.sigmoid of the logits"
        wanted = "rows of numbers in 0..1 that sum to 1" if is_one_of else "numbers in 0..1"
        raise ExportError(f"task: output '{task.output}': expected probabilities, {wanted}, got {found}; {cure}")


def check_class_names(task: Task) -> None:
    """Checks that class names are texts, not one text. ExportError: they are something else."""
    names = task.class_names
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ExportError(
            f"task: expected class_names to be a tuple of texts, got {str(names)[:80]!r}; "
            "for example tuple(map(str, names))"
        )
