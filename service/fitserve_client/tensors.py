"""Arrays into tensors and back: casts that lose nothing but float precision, or are refused.

Shapes: any; the server holds them against the signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from fitserve.types.v1 import tensor_pb2
from fitserve_client.errors import INVALID_INPUT, INVALID_LABELS, InternalError, InvalidArgumentError
from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES, datatype_of
from fitserve_contract.tensor_bytes import Array, bytes_element, decode, encode, widened

ArrayLike: TypeAlias = Any
"""Whatever `numpy.asarray` takes: arrays, nested lists, numbers, strings, tensors on the CPU."""

_INTEGERS: Final = "iub"
_FLOATS: Final = "f"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a message is about: an input by its name, or the labels."""

    text: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def input(name: str) -> Subject:
        """Names an input."""
        return Subject(f"input '{name}'", INVALID_INPUT, {"input": name})


LABELS: Final = Subject("labels", INVALID_LABELS)


def as_array(subject: Subject, value: ArrayLike) -> Array:
    """Gives a value as an array.

    Raises:
        InvalidArgumentError: its rows differ in length, or numpy cannot read it.
    """
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise _refused(subject, f"expected an array or nested lists of equal lengths, got {error}") from None


def cast(subject: Subject, datatype: str, value: ArrayLike) -> Array:
    """Casts a value to a datatype where that is safe.

    Integers go to any integer or float datatype that holds each of their values exactly; floats go to any float
    datatype, rounded to nearest, as long as no finite value becomes infinite; BYTES takes str (as UTF-8) and bytes.
    Floats never become integers: round them yourself.

    Args:
        subject: What is cast, for messages.
        datatype: OIP spelling.
        value: What to cast.

    Returns:
        Array of the datatype's dtype; BF16 as uint16 bit patterns.

    Raises:
        InvalidArgumentError: the cast would lose something, or there is no such cast.
    """
    array = as_array(subject, value)
    if datatype == BYTES:
        return _to_bytes(subject, array)
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in _INTEGERS + _FLOATS:
        raise _refused(subject, f"expected {datatype}, got {array.dtype}")
    if datatype == BF16:
        return _to_bfloat16(subject, array)
    dtype = NUMPY_DTYPES[datatype]
    if array.dtype == dtype:
        return array
    return _to_float(subject, datatype, array) if dtype.kind == _FLOATS else _to_integer(subject, datatype, array)


def natural_datatype(subject: Subject, array: Array) -> str:
    """Gives the datatype that an array has by itself.

    Raises:
        InvalidArgumentError: no datatype has its elements.
    """
    try:
        return datatype_of(array.dtype)
    except ValueError as error:
        raise _refused(subject, str(error)) from None


def tensor_message(name: str, datatype: str, array: Array) -> tensor_pb2.Tensor:
    """Writes an array of the datatype's dtype as a message."""
    return tensor_pb2.Tensor(name=name, datatype=datatype, shape=array.shape, content=encode(array, datatype))


def array_of(message: tensor_pb2.Tensor) -> Array:
    """Reads a tensor; the array is the caller's own. BF16 comes as float32, which holds each of its values.

    Raises:
        InternalError: the server's bytes do not fit its shape.
    """
    try:
        array = decode(message.name, message.datatype, message.shape, message.content)
    except ValueError as error:
        raise InternalError(f"answer: {error}") from None
    if message.datatype == BF16:
        return widened(array)
    return array if array.flags.writeable else array.copy()


def _to_bytes(subject: Subject, array: Array) -> Array:
    elements = np.empty(array.size, object)
    try:
        elements[:] = [bytes_element(value) for value in array.reshape(-1).tolist()]
    except ValueError as error:
        raise _refused(subject, str(error)) from None
    return elements.reshape(array.shape)


def _to_integer(subject: Subject, datatype: str, array: Array) -> Array:
    """BOOL counts as the integers 0 and 1."""
    if array.dtype.kind == _FLOATS and array.size:
        raise _refused(subject, f"expected {datatype}, got {array.dtype}: round it and use .astype() if that is meant")
    low, high = (0, 1) if datatype == "BOOL" else _bounds(NUMPY_DTYPES[datatype])
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        worst = int(array.min()) if int(array.min()) < low else int(array.max())
        raise _refused(subject, f"expected {datatype} values {low}..{high}, got {worst}")
    return array.astype(NUMPY_DTYPES[datatype])


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _to_float(subject: Subject, datatype: str, array: Array) -> Array:
    with np.errstate(over="ignore"):
        floats = array.astype(NUMPY_DTYPES[datatype])
    _check_float(subject, datatype, array, floats)
    return floats


def _to_bfloat16(subject: Subject, array: Array) -> Array:
    """Rounds to nearest even in the upper 16 bits of float32; a NaN stays one."""
    singles = np.ascontiguousarray(_to_float(subject, "FP32", array))
    bits = singles.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    patterns = np.where(np.isnan(singles), (bits >> 16).astype(np.uint16) | 0x40, rounded)
    _check_float(subject, BF16, array, widened(patterns))
    return np.asarray(patterns.astype(np.uint16))


def _check_float(subject: Subject, datatype: str, array: Array, floats: Array) -> None:
    found, cast_ = array.reshape(-1), floats.reshape(-1)
    is_lost = np.isfinite(found) & ~np.isfinite(cast_) if found.dtype.kind == _FLOATS else _is_other(found, cast_)
    if is_lost.any():
        raise _refused(subject, f"expected values that {datatype} holds, got {found[is_lost][0]} in {array.dtype}")


def _is_other(integers: Array, floats: Array) -> Array:
    """Tells per element of (N) whether the float is another number; as Python integers where float64 cannot tell."""
    wide = floats.astype(np.float64)
    is_other: Array = ~np.isfinite(wide) | (wide != integers)
    for index in np.flatnonzero(np.isfinite(wide) & (np.abs(wide) >= 2.0**53)):
        is_other[index] = int(wide[index]) != int(integers[index])
    return is_other


def _refused(subject: Subject, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{subject.text}: {what}", reason=subject.reason, metadata=subject.metadata)
