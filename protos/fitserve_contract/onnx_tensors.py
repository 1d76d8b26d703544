"""Reads the tensors of an ONNX file: name and shape of each, and the elements of those that are small.

Source: onnx/onnx.proto (TensorProto).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fitserve_contract.onnx_wire import Budget, Field, fields, floats, integers, last, short_fields

Array = npt.NDArray[Any]

MAX_VALUES: Final = 4096
"""Most elements of a constant or of an attribute that are decoded."""
MAX_RANK: Final = 64
MAX_TEXT: Final = 256
"""Longest text, in bytes, that is read."""

_STRING: Final = 8

_STRING_DATA = short_fields(6)
_DTYPES: dict[int, npt.DTypeLike] = {
    **{1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?"},
    **{10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8"},
}
_SMALL_INTEGERS = (2, 3, 4, 5, 6, 9)


@dataclass(slots=True)
class TensorConstant:
    """A TensorProto.

    Args:
        dims: Its shape; None where that is no shape.
        data_type: Number of the element type in onnx.proto.
        values: The elements in that shape; None where they are more than MAX_VALUES, external or not of numbers.
        text: The only element of a tensor of one text; None of any other.
    """

    dims: tuple[int, ...] | None
    data_type: int
    values: Array | None
    text: bytes | None = None


def tensor_name(content: memoryview, budget: Budget) -> memoryview:
    """Returns the bytes of a serialized TensorProto's name."""
    name = memoryview(b"")
    for number, value in fields(content, _STRING_DATA, budget):
        if number == 8 and isinstance(value, memoryview):
            name = value
    return name


def read_tensor(content: memoryview, budget: Budget) -> TensorConstant:
    """Reads a serialized TensorProto; large and external data stay where they are."""
    dims, data_type, data, is_external = list[int](), 0, list[Field](), False
    for number, value in fields(content, _STRING_DATA, budget):
        if number == 1 and len(dims) <= MAX_RANK:
            more = integers(value, MAX_RANK)
            dims += [-1] if more is None else more
        elif number == 2:
            data_type = last(value) or 0
        elif number in (4, 5, 7, 9, 10, 11) and len(data) < 2:
            data.append((number, value))
        elif number in (3, 13) or (number == 14 and value != 0):
            is_external = True
    if any(size < 0 for size in dims) or len(dims) > MAX_RANK:
        return TensorConstant(None, data_type, None)
    if data_type == _STRING:
        text = None if is_external or math.prod(dims) != 1 else _only_text(content, budget)
        return TensorConstant(tuple(dims), data_type, None, text)
    values = None if is_external or math.prod(dims) > MAX_VALUES else _values(data_type, dims, data, budget)
    return TensorConstant(tuple(dims), data_type, values)


def _only_text(content: memoryview, budget: Budget) -> bytes | None:
    found = [value for number, value in fields(content, budget=budget) if number == 6]
    text = found[0] if len(found) == 1 else None
    return bytes(text) if isinstance(text, memoryview) and len(text) <= MAX_TEXT else None


def _values(data_type: int, dims: Sequence[int], data: list[Field], budget: Budget) -> Array | None:
    """The elements, where they lie in one field of the right kind and are as many as the shape says."""
    dtype, count = _DTYPES.get(data_type), math.prod(dims)
    if dtype is None:
        return None
    if not data and count == 0:
        return np.zeros(dims, dtype)
    if len(data) != 1:
        return None
    number, value = data[0]
    if number == 9 and isinstance(value, memoryview):
        is_whole = len(value) == count * np.dtype(dtype).itemsize
        return np.frombuffer(value, dtype).reshape(dims) if is_whole else None
    found: Sequence[float] | None = None
    if (number == 7 and data_type == 7) or (number == 5 and data_type in _SMALL_INTEGERS):
        found = integers(value, MAX_VALUES)
    elif number == 4 and data_type == 1:
        found = floats(value, MAX_VALUES)
    if found is None or len(found) != count:
        return None
    budget.spend(count)
    wide = np.asarray(found, np.float32 if number == 4 else np.int64)
    return wide.astype(dtype).reshape(dims)
