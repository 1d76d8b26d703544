"""How far two answers to one request agree. Pure.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fitserve_contract.datatypes import BF16, BYTES
from fitserve_contract.sums import MULTI_LABEL_THRESHOLD
from fitserve_contract.tasks import Task, TaskKind
from fitserve_contract.tensor_bytes import Array, widened
from fitserve_service.signature import Tensor


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two answers side by side.

    Args:
        example_count: Rows.
        agreed_count: Rows for which both predict the same: the class, the class of every position, or the set of
            labels; None where the task has no such thing, or was not asked for.
        max_abs_diff: Largest |difference| of two numbers; infinite where they cannot be subtracted: NaN against a
            number, or texts that differ.
    """

    example_count: int
    agreed_count: int | None
    max_abs_diff: float


def compare(
    task: Task | None, live: Mapping[str, Tensor], other: Mapping[str, Tensor], example_count: int
) -> Agreement | None:
    """Compares two answers to one request.

    Args:
        task: What the outputs mean; None: unknown.
        live: Output name to tensor, of the version that answered.
        other: The same of the other version.
        example_count: Rows of the request.

    Returns:
        None where the answers have different forms: names, datatypes or shapes.
    """
    if live.keys() != other.keys() or any(_form(live[name]) != _form(other[name]) for name in live):
        return None
    differences = [_max_abs_diff(tensor, other[name]) for name, tensor in live.items()]
    agreed = _agreed_count(task, live, other)
    return Agreement(example_count, agreed, max(differences, default=0.0))


def _form(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.datatype, tensor.array.shape


def _max_abs_diff(one: Tensor, two: Tensor) -> float:
    if one.array.size == 0:
        return 0.0
    if one.datatype == BYTES:
        return 0.0 if bool(np.all(one.array == two.array)) else np.inf
    left, right = _reals(one), _reals(two)
    is_same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.where(is_same, 0.0, np.abs(left - right))
    return float(np.where(np.isnan(differences), np.inf, differences).max())


def _agreed_count(task: Task | None, live: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> int | None:
    if task is None or task.kind is TaskKind.REGRESSION or task.output not in live:
        return None
    one, two = _reals(live[task.output]), _reals(other[task.output])
    if one.ndim < 2 or one.shape[-1] == 0:
        return None
    if task.kind in (TaskKind.CLASSIFICATION, TaskKind.TOKEN_CLASSIFICATION):
        has_class = one.argmax(axis=-1) == two.argmax(axis=-1)
        return int(np.count_nonzero(has_class.all(axis=tuple(range(1, has_class.ndim)))))
    is_same = (one >= MULTI_LABEL_THRESHOLD) == (two >= MULTI_LABEL_THRESHOLD)
    return int(np.count_nonzero(is_same.all(axis=-1)))


def _reals(tensor: Tensor) -> Array:
    """Gives a tensor's numbers in float64."""
    return (widened(tensor.array) if tensor.datatype == BF16 else tensor.array).astype(np.float64)
