"""How far two answers agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.agreement import Agreement, compare
from fitserve_service.signature import Tensor

CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b"))
LABELS = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)


def y(values: Any, datatype: str = "FP32", dtype: Any = np.float32) -> dict[str, Tensor]:
    return {"y": Tensor(datatype, np.array(values, dtype))}


@pytest.mark.parametrize(
    ("task", "one", "two", "expected"),
    [
        (CLASSES, [[1, 2], [3, 0]], [[1, 2.5], [0, 3]], Agreement(2, 1, 3.0)),
        (LABELS, [[0.5, 0], [1, 1]], [[0.75, 0], [1, 0.25]], Agreement(2, 1, 0.75)),
        (VALUES, [[1], [2]], [[1], [2]], Agreement(2, None, 0.0)),
        (None, [[1], [2]], [[1], [4]], Agreement(2, None, 2.0)),
        (None, [[math.nan], [math.inf]], [[math.nan], [math.inf]], Agreement(2, None, 0.0)),
        (None, [[math.nan], [0]], [[0], [0]], Agreement(2, None, math.inf)),
        (None, [[math.inf], [0]], [[-math.inf], [0]], Agreement(2, None, math.inf)),
        (CLASSES, np.zeros((0, 2)), np.zeros((0, 2)), Agreement(0, 0, 0.0)),
        (CLASSES, [1, 2], [1, 2], Agreement(2, None, 0.0)),
    ],
)
def test_answers_are_compared(task: Task | None, one: Any, two: Any, expected: Agreement) -> None:
    assert compare(task, y(one), y(two), len(one)) == expected


def test_answers_of_different_forms_are_not_compared() -> None:
    assert compare(None, y([[1]]), y([[1, 2]]), 1) is None
    assert compare(None, y([[1]]), y([[1]], "FP64", np.float64), 1) is None
    assert compare(None, y([[1]]), {"z": y([[1]])["y"]}, 1) is None


def test_other_datatypes() -> None:
    largest = 2**64 - 1
    assert compare(None, y([largest], "UINT64", np.uint64), y([0], "UINT64", np.uint64), 1) == Agreement(
        1, None, 2.0**64
    )
    assert compare(None, y([True], "BOOL", bool), y([False], "BOOL", bool), 1) == Agreement(1, None, 1.0)
    one, two = (y([text], "BYTES", object) for text in (b"a", b"b"))
    assert compare(None, one, two, 1) == Agreement(1, None, math.inf)
    assert compare(None, one, one, 1) == Agreement(1, None, 0.0)
    # BF16 1.0 and 2.0 as their bit patterns.
    assert compare(None, y([0x3F80], "BF16", np.uint16), y([0x4000], "BF16", np.uint16), 1) == Agreement(1, None, 1.0)


@given(arrays.arrays(np.float32, (3, 2)), arrays.arrays(np.float32, (3, 2)))
def test_no_answer_disagrees_with_itself_and_order_does_not_matter(
    one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]
) -> None:
    assert compare(CLASSES, y(one), y(one), 3) == Agreement(3, 3, 0.0)
    assert compare(CLASSES, y(one), y(two), 3) == compare(CLASSES, y(two), y(one), 3)
