"""What labels say a task is. Shapes: N examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fitserve_training.data.own.kinds import check_classes
from fitserve_training.errors import UsageError

TASKS = ("auto", "classification", "regression")
_MOST_CLASSES = 20
"""More different whole numbers than this are taken for quantities."""


def targets_of(path: Path, labels: Sequence[str], first_line: int, task: str) -> tuple[Tensor, tuple[str, ...]]:
    """Turns label texts into targets.

    Args:
        path: For error messages.
        labels: One per row; none empty.
        first_line: Line number of the first.
        task: `classification`, `regression`, or `auto`: classes where they are words or few whole numbers.

    Returns:
        Class indices int64 (N,) with class names, or values float32 (N, 1) with none.

    Raises:
        UsageError: an unknown task, one class, or a value that is no number.
    """
    if task not in TASKS:
        raise UsageError(f"setting 'data.task': expected one of {', '.join(TASKS)}, got {task!r}")
    if task == "regression" or (task == "auto" and not _are_classes(labels)):
        values = [number(text, f"{path} line {first_line + i}: label") for i, text in enumerate(labels)]
        return torch.tensor(values, dtype=torch.float32).unsqueeze(1), ()
    for i, label in enumerate(labels):
        if label.strip().lower() in ("", "nan", "null", "none"):
            raise UsageError(f"{path} line {first_line + i}: label: expected a class, got {label!r}")
    counts = Counter(labels)
    check_classes(path, dict(counts))
    names = tuple(sorted(counts, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place[label] for label in labels]), names


def number(text: str, what: str) -> float:
    """Reads a finite number.

    Raises:
        UsageError: it is none; the message begins with `what`.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{what}: expected a finite number, got {text!r}")
    return value


def _are_classes(labels: Sequence[str]) -> bool:
    distinct = set(labels)
    whole = all(text.strip().lstrip("-").isdigit() for text in distinct)
    return (whole and len(distinct) <= _MOST_CLASSES) or any(_is_word(text) for text in distinct)


def _is_word(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip() != ""
    return False
