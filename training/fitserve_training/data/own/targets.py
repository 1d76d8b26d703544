"""What labels say a task is. Shapes: N examples, C classes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitserve_contract.columns import NUMBER_PATTERN, class_name, plain_label
from fitserve_training.data.own.kinds import check_classes
from fitserve_training.errors import UsageError

AUTO, CLASSIFICATION, REGRESSION, MULTI_LABEL = "auto", "classification", "regression", "multi-label"
_MOST_CLASSES = 20
"""More different whole numbers than this are taken for quantities."""

_BLANK = ("", "nan")
_MISSING = (*_BLANK, "null", "none", "na", "n/a", "#n/a", "<na>", "?")
"""Labels that stand for none, but for classes of such a name, which the setting `data.task` says."""

_NOTED = re.compile(r"[+-]?\s*(?:[$€£¥]\s*)?[0-9][0-9.,' \u00a0\u202f]*\s*[$€£¥%]?")
"""Numbers as people write them, of which those that are none of `NUMBER_PATTERN` are not read as labels."""

_LARGEST = 1e18
"""float32 holds the squares of smaller errors."""

_NUMBER = re.compile(NUMBER_PATTERN)
_FEW = f"at most {_MOST_CLASSES} different whole numbers, each of two or more examples on average"


@dataclass(frozen=True)
class Targets:
    """Targets with the task that they stand for.

    Args:
        values: Class indices int64 (N,), any of C classes bool (N, C), or real numbers float32 (N, D).
        names: Of the classes; empty for regression.
        note: The task and the rule that chose it, one clause for people.
    """

    values: Tensor
    names: tuple[str, ...]
    note: str


def check_task(task: str, known: Sequence[str]) -> None:
    """Checks the setting `data.task`.

    Raises:
        UsageError: the data has no such task.
    """
    if task not in known:
        raise UsageError(f"setting 'data.task': expected one of {', '.join(known)}, got {task!r}")


def targets_of(path: Path, labels: Sequence[str], first_line: int, task: str) -> Targets:
    """Turns label texts into targets; space around them and thousands separators count for nothing.

    Args:
        path: For error messages.
        labels: One per row.
        first_line: Line number of the first.
        task: `classification`, `regression`, or `auto`: classes where they are words or few whole numbers.

    Raises:
        UsageError: an unknown task, one class, or a value that is no number.
    """
    check_task(task, (AUTO, CLASSIFICATION, REGRESSION))
    texts = [plain_label(label) for label in labels]
    if task == AUTO:
        _check_unmixed(path, texts, first_line)
    chosen, reason = (task, "") if task != AUTO else _task_of_texts(texts)
    if chosen == REGRESSION:
        values = [number(text, f"{path} line {first_line + i}: label") for i, text in enumerate(texts)]
        return Targets(torch.tensor(values, dtype=torch.float32).unsqueeze(1), (), _note(chosen, reason))
    for i, text in enumerate(texts):
        if text.lower() in (_MISSING if task == AUTO else _BLANK):
            own = "" if text.lower() in _BLANK else f", or --set data.task={CLASSIFICATION} if it is a class of its own"
            raise UsageError(
                f"{path} line {first_line + i}: label: expected a class, got {labels[i]!r}; remove the lines without a "
                f"label{own}"
            )
    targets, names = class_targets(path, texts)
    return Targets(targets, names, _note(chosen, reason) + _alike(names))


def value_targets(values: Tensor, task: str) -> Targets:
    """Makes targets of finite numbers of a table, float32 (N, D), of which far more than twenty are different."""
    return Targets(values, (), _note(REGRESSION, "" if task == REGRESSION else f"numbers, but not {_FEW}"))


def class_targets(path: Path, labels: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers the classes: int64 (N,) and the names, whole numbers by value first, then words by alphabet.

    Whole numbers get one name however they are written: 1, +1 and 1.0 are the class 1.

    Raises:
        UsageError: fewer than two classes, or one of a single example.
    """
    named = [class_name(label) for label in labels]
    counts = Counter(named)
    check_classes(path, dict(counts))
    names = tuple(sorted(counts, key=lambda name: (not _is_whole(name), float(name) if _is_whole(name) else 0, name)))
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place[name] for name in named]), names


def array_targets(path: Path, labels: np.ndarray[Any, Any], task: str) -> Targets:
    """Turns an array of finite labels, (N,) or (N, D), into targets; classes keep the numbers that they have there.

    Args:
        path: For error messages.
        labels: Booleans, whole or real numbers.
        task: `classification`, `regression`, `multi-label`, or `auto`: one-hot rows, booleans and few whole numbers (or
            integers that are 0 to C - 1 without a gap) are classes, other rows of 0 and 1 are any of C classes.

    Raises:
        UsageError: an unknown task, or labels that it cannot have; the message says what is expected.
    """
    check_task(task, (AUTO, CLASSIFICATION, REGRESSION, MULTI_LABEL))
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    chosen, reason = (task, "") if task != AUTO else _task_of_array(column)
    if chosen == REGRESSION:
        check_values(labels, f"data {path}: array 'labels'")
        values = torch.from_numpy(labels.astype(np.float32).reshape(len(labels), -1))
        return Targets(values, (), _note(chosen, reason))
    if chosen == MULTI_LABEL:
        if column.ndim != 2 or not _is_zero_or_one(column):
            raise _unfit(path, "rows of 0 and 1 (N, C) for data.task=multi-label", labels)
        names = tuple(str(index) for index in range(column.shape[1]))
        return Targets(torch.from_numpy(column.astype(np.bool_)), names, _note(chosen, reason))
    indices = column.argmax(axis=1) if _is_one_hot(column) else column
    count = column.shape[1] if column.ndim == 2 else _class_count(path, indices)
    if indices.ndim != 1:
        raise _unfit(path, "whole numbers (N,) or one-hot rows (N, C) for data.task=classification", labels)
    check_classes(path, {f"{value:g}": int((indices == value).sum()) for value in np.unique(indices)})
    names = tuple(str(index) for index in range(count))
    return Targets(torch.from_numpy(indices.astype(np.int64)), names, _note(chosen, reason))


def number(text: str, what: str) -> float:
    """Reads a number whose square float32 holds.

    Raises:
        UsageError: it is none; the message begins with `what`.
    """
    if not _is_number(text):
        raise UsageError(f"{what}: expected a finite number, got {text!r}; correct it or remove the line")
    if abs(value := float(text)) > _LARGEST:
        raise UsageError(f"{what}: expected a number of at most {_LARGEST:g}, got {text!r}; correct it")
    return value


def check_values(values: np.ndarray[Any, Any], what: str) -> None:
    """Checks that float32 holds the squares of finite values, (N,) or (N, D), to be learned.

    Raises:
        UsageError: it does not; the message begins with `what`.
    """
    if (is_large := np.abs(values.reshape(len(values), -1).astype(np.float64)).max(axis=1) > _LARGEST).any():
        raise UsageError(
            f"{what} row {int(is_large.argmax())}: expected numbers of at most {_LARGEST:g}, got "
            f"{np.abs(values[int(is_large.argmax())]).max():g}; give them in a larger unit, or correct it"
        )


def _alike(names: Sequence[str]) -> str:
    """Warns of classes that differ in upper and lower case alone."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.casefold(), []).append(name)
    twins = [those for those in folded.values() if len(those) > 1]
    if not twins:
        return ""
    shown = " and ".join(map(repr, twins[0]))
    return f"; warning: the classes {shown} differ in case alone; spell them alike if they are one"


def _note(task: str, reason: str) -> str:
    if not reason:
        return f"task {task}, as data.task says"
    others = [REGRESSION] if task == CLASSIFICATION else [CLASSIFICATION]
    others += [REGRESSION] if task == MULTI_LABEL else []
    change = " or ".join(f"data.task={other}" for other in others)
    return f"task {task}, for the labels are {reason} (--set {change} if they are not)"


def _check_unmixed(path: Path, texts: Sequence[str], first_line: int) -> None:
    """Refuses a few words among many different numbers, which are quantities with a mistake and not classes."""
    distinct = {text for text in texts if text.lower() not in (*_BLANK, "null", "none")}
    words = {text for text in distinct if not _is_number(text)}
    noted = {text for text in words if _NOTED.fullmatch(text)}
    if noted and len(distinct) > _MOST_CLASSES and 2 * (len(distinct) - len(words) + len(noted)) > len(distinct):
        place = next(i for i, text in enumerate(texts) if text in noted)
        raise UsageError(
            f"{path} line {first_line + place}: label: expected a number such as 1234.5, got {texts[place]!r}; remove "
            "signs of currency and percent, and write a point before the decimals, or --set "
            f"data.task={CLASSIFICATION} for a class of each value"
        )
    if words and len(distinct) - len(words) > max(_MOST_CLASSES, len(words)):
        place = next(i for i, text in enumerate(texts) if text in words)
        raise UsageError(
            f"{path} line {first_line + place}: label: expected a number as in most lines, got {texts[place]!r}; "
            f"correct it, or --set data.task={CLASSIFICATION} for a class of each value"
        )


def _task_of_texts(texts: Sequence[str]) -> tuple[str, str]:
    present = {text for text in texts if text.lower() not in _MISSING}
    if any(not _is_number(text) for text in present):
        return CLASSIFICATION, "words"
    if all(_is_whole(text) for text in present) and _are_few({float(text) for text in present}, len(texts)):
        return CLASSIFICATION, _FEW
    return REGRESSION, f"numbers, but not {_FEW}"


def _task_of_array(labels: np.ndarray[Any, Any]) -> tuple[str, str]:
    if labels.ndim == 2:
        if _is_one_hot(labels):
            return CLASSIFICATION, "one-hot rows, one 1 among 0"
        return (MULTI_LABEL, "rows of 0 and 1") if _is_zero_or_one(labels) else (REGRESSION, "rows of numbers")
    if labels.dtype.kind == "b":
        return CLASSIFICATION, "booleans"
    values = np.unique(labels)
    if bool((values == np.round(values)).all()):
        if _are_few(values.tolist(), len(labels)):
            return CLASSIFICATION, _FEW
        is_counted = len(values) * 2 <= len(labels) and values[0] == 0 and values[-1] == len(values) - 1
        if labels.dtype.kind in "iu" and is_counted:
            return CLASSIFICATION, f"integers 0 to {len(values) - 1} without a gap"
    return REGRESSION, f"numbers, but not {_FEW}"


def _are_few(values: Collection[float], example_count: int) -> bool:
    return len(values) <= _MOST_CLASSES and len(values) * 2 <= example_count


def _is_zero_or_one(labels: np.ndarray[Any, Any]) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _is_one_hot(labels: np.ndarray[Any, Any]) -> bool:
    return labels.ndim == 2 and _is_zero_or_one(labels) and bool((labels.sum(axis=1) == 1).all())


def _class_count(path: Path, indices: np.ndarray[Any, Any]) -> int:
    """Counts the classes 0 to the largest label; far more numbers than classes are a mistake."""
    found = np.unique(indices)
    is_whole = bool((found == np.round(found)).all())
    if not is_whole or found[0] < 0 or found[-1] > 2 * len(found) + _MOST_CLASSES:
        shown = ", ".join(f"{float(value):g}" for value in found[:4]) + (", …" if len(found) > 4 else "")
        raise UsageError(
            f"data {path}: array 'labels': expected classes numbered from 0 to C - 1, got {shown}; number them so, or "
            "--set data.task=regression"
        )
    return int(found[-1]) + 1


def _unfit(path: Path, expected: str, labels: np.ndarray[Any, Any]) -> UsageError:
    return UsageError(f"data {path}: array 'labels': expected {expected}, got {labels.dtype} {labels.shape}")


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(float(text))


def _is_whole(text: str) -> bool:
    return _is_number(text) and float(text).is_integer()
