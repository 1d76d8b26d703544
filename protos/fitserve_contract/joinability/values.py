"""What the analysis knows of a tensor: whether it depends on the rows, where they lie, and its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fitserve_contract.joinability.sizes import ROW_COUNT, Size, divide, has_rows, times, times_all

Elements = npt.NDArray[Any]
"""Array of objects: an int, float, bool or Product for each element; None where it is not known and may depend on N."""

FLOAT: Final = 1
INT64: Final = 7
"""Numbers of those types in onnx.proto."""


class Kind(Enum):
    """What a tensor depends on. Whatever it is, requests of one shape share it but for their rows."""

    CONSTANT = "neither the rows nor their number"
    ROWS = "each slice along the row axis on that row alone"
    COUNT = "the number of rows, or the place of a row among them"
    MIXED = "several rows"
    SEQUENCE = "whatever its tensors depend on"


@dataclass(frozen=True, slots=True)
class RowAxis:
    """Where the rows lie: on that axis, whose index is (b * N + row) * after + a, with b < before and a < after."""

    axis: int
    before: Size = 1
    after: Size = 1

    @property
    def is_plain(self) -> bool:
        """The axis is the rows and nothing else."""
        return self.before == 1 and self.after == 1


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor, as far as it is known.

    Args:
        kind: What it depends on.
        shape: Sizes of its axes; None where the rank is not known. Known where the kind is ROWS.
        row: Where the rows lie; given where the kind is ROWS or `is_position`, and for whatever else of kind COUNT has
            an axis as long as the rows.
        elements: All elements of a small tensor of integers, as far as they are known.
        problem: Of a MIXED one: the node that mixed, and how.
        is_position: Of kind COUNT: each slice along the row axis holds the index of that row, everywhere or, with
            `column_count`, in the first of so many columns of the last axis, of which the others are as ROWS.
        column_count: As said; 0 where the last axis is no axis of columns.
        parts: Of a sequence: its tensors.
        stride: With `is_position`: the index of the row times that, plus what is below `below`.
        below: Every element is 0 or more and below that; of an `is_position`, what is added to the row's index times
            `stride`. None where that is not known.
        type: Of its elements: the number in onnx.proto; 0 where that is not known. Known where elements are.
        ending: What every element, a text, ends with, as far as that is known.
    """

    kind: Kind
    shape: tuple[Size, ...] | None = None
    row: RowAxis | None = None
    elements: Elements | None = None
    problem: str = ""
    is_position: bool = False
    column_count: int = 0
    parts: tuple[Value, ...] | None = None
    stride: Size = 1
    below: Size | None = None
    type: int = 0
    ending: bytes = b""

    @property
    def rank(self) -> int | None:
        """Number of axes, where it is known."""
        return None if self.shape is None else len(self.shape)


UNKNOWN_CONSTANT: Final = Value(Kind.CONSTANT)
UNKNOWN_COUNT: Final = Value(Kind.COUNT)


def constant(shape: Sequence[Size] | None) -> Value:
    """A tensor of that shape that no request's rows reach."""
    return Value(Kind.CONSTANT, None if shape is None else tuple(shape))


def mixed(problem: str) -> Value:
    """A tensor whose rows are mixed."""
    return Value(Kind.MIXED, problem=problem)


def rows(shape: Sequence[Size], row: RowAxis) -> Value:
    """A tensor that carries rows; the row axis of the shape is overwritten by what `row` says."""
    sizes = list(shape)
    sizes[row.axis] = ROW_COUNT if row.is_plain else times(times(row.before, ROW_COUNT), row.after)
    return Value(Kind.ROWS, tuple(sizes), row)


def like(value: Value, shape: Sequence[Size] | None, row: RowAxis | None) -> Value:
    """A tensor of the same kind with another layout, whose elements are not known."""
    is_plain = value.elements is None and value.below is None and not value.ending
    if shape is value.shape and row is value.row and is_plain:
        return value
    if value.kind is Kind.ROWS and shape is not None and row is not None:
        return typed(rows(shape, row), value.type)
    below = value.below if value.is_position else None
    return replace(
        value, shape=None if shape is None else tuple(shape), row=row, elements=None, below=below, ending=b""
    )


def typed(value: Value, number: int) -> Value:
    """The same tensor with elements of that type."""
    return value if value.type == number else replace(value, type=number)


def of_elements(elements: Elements, number: int = INT64) -> Value:
    """A tensor of known elements of that type; of kind COUNT where one depends on the number of rows."""
    is_count = any(element is None or has_rows(element) for element in elements.flat)
    return Value(Kind.COUNT if is_count else Kind.CONSTANT, elements.shape, None, elements, type=number)


def vector(sizes: Sequence[Size | None]) -> Value:
    """A one-dimensional tensor of sizes."""
    elements = np.empty(len(sizes), object)
    elements[:] = sizes
    return of_elements(elements)


def regrouped(shape: Sequence[Size], row: RowAxis, target: Sequence[Size]) -> RowAxis | None:
    """Finds the rows after a reshape, in C order, to as many elements.

    Args:
        shape: Sizes before.
        row: Where the rows lie before.
        target: Sizes after.

    Returns:
        None where they no longer lie along one axis, or where that cannot be told.
    """
    places = [place for place, size in enumerate(target) if has_rows(size)]
    if len(places) != 1:
        return None
    place = places[0]
    within = divide(target[place], ROW_COUNT)
    if within is None or has_rows(within):
        return None
    # Equal totals: what lies before the rows decides what lies behind them, and the other way round.
    if (outer := divide(times_all([*shape[: row.axis], row.before]), times_all(list(target[:place])))) is not None:
        inner = divide(within, outer)
        return None if inner is None else RowAxis(place, outer, inner)
    inner = divide(times_all([row.after, *shape[row.axis + 1 :]]), times_all(list(target[place + 1 :])))
    outer = None if inner is None else divide(within, inner)
    return None if outer is None or inner is None else RowAxis(place, outer, inner)
