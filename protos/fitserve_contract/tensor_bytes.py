"""Tensors as bytes: little-endian, row-major, without padding; BYTES elements each behind a 4-byte length.

All size arithmetic is in Python integers: numpy's int64 products wrap, and a wrapped size would pass a check.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

import numpy as np

from fitserve_contract.datatypes import BOOL, BYTES, NUMPY_DTYPES

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MAX_RANK = 32
"""More axes are refused; numpy holds 64, ONNX Runtime's kernels fewer."""

MAX_ELEMENTS = 2**40
"""A shape that counts more elements is refused before any arithmetic with the byte length."""

RAW_BOOL: Final = np.dtype("<u1")
"""How a BOOL element is read before it becomes 0 or 1: kernels that trust it do not agree on what other bytes mean."""

_LENGTH = struct.Struct("<I")

_LARGE_BYTES: Final = 1 << 16

LENGTH_BYTES: Final = _LENGTH.size
"""What stands before each BYTES element."""


def element_count(name: str, shape: Sequence[int]) -> int:
    """Counts the elements of a shape; a scalar (no axes) has 1.

    Raises:
        ValueError: an axis is negative, there are too many axes, or the product passes MAX_ELEMENTS.
    """
    if len(shape) > MAX_RANK:
        raise ValueError(f"tensor '{name}': expected at most {MAX_RANK} axes, got {len(shape)}")
    count = 1
    is_empty = False
    for size in shape:
        if size < 0:
            raise ValueError(f"tensor '{name}': expected axis sizes of at least 0, got shape {shape_text(shape)}")
        is_empty = is_empty or size == 0
        count *= max(size, 1)
        if count > MAX_ELEMENTS:
            raise ValueError(
                f"tensor '{name}': expected at most {MAX_ELEMENTS} elements, got shape {shape_text(shape)}"
            )
    return 0 if is_empty else count


def shape_text(shape: Sequence[int | str | None]) -> str:
    """Writes a shape as a tuple, a free axis as its name or `?`: `(B, 1, 28, ?)`."""
    axes = [str(axis) if axis not in (None, -1) else "?" for axis in shape]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def widened(patterns: Array) -> Array:
    """Gives BF16 bit patterns as float32, which holds each of their values: they are its upper half.

    Args:
        patterns: uint16, any shape.

    Returns:
        float32 of the same shape.
    """
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def decode(name: str, datatype: str, shape: Sequence[int], content: bytes | memoryview) -> Array:
    """Reads a tensor from its bytes, without a copy but for BYTES and BOOL.

    Args:
        name: Tensor name, for messages.
        datatype: OIP spelling.
        shape: Size of each axis.
        content: The elements; a result that is no copy keeps it alive and is read-only. Of BOOL bytes, 0 is false and
            any other is true.

    Returns:
        Array of `shape`; BF16 as uint16 bit patterns, BYTES as an object array of `bytes`.

    Raises:
        ValueError: unknown datatype, bad shape, or bytes that do not fit the shape.
    """
    dtype = NUMPY_DTYPES.get(datatype)
    if dtype is None:
        raise ValueError(f"tensor '{name}': expected a datatype of {', '.join(NUMPY_DTYPES)}, got '{datatype[:64]}'")
    count = element_count(name, shape)
    if datatype == BYTES:
        return _decode_bytes(name, count, content).reshape(shape)
    expected = count * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"tensor '{name}': expected {expected} bytes for {datatype} {shape_text(shape)}, got {len(content)}"
        )
    if count == 0:
        return np.empty(shape, dtype)
    if datatype == BOOL:
        flags: Array = np.frombuffer(content, RAW_BOOL) != 0
        return flags.reshape(shape)
    return np.frombuffer(content, dtype).reshape(shape)


def encode(array: Array, datatype: str) -> bytes:
    """Writes a tensor as bytes; the inverse of `decode`.

    Raises:
        ValueError: a BYTES element is neither bytes nor str, or is longer than 2^32 - 1 bytes.
    """
    if datatype == BYTES:
        return b"".join(_encoded_elements(array))
    return np.ascontiguousarray(array, NUMPY_DTYPES[datatype]).tobytes()


def buffer_of(array: Array, datatype: str) -> bytes | memoryview:
    """Returns what `encode` returns; of a large array a view of its bytes, where it has them in a row."""
    if datatype == BYTES or array.nbytes < _LARGE_BYTES:
        return encode(array, datatype)
    flat: Array = np.ascontiguousarray(array, NUMPY_DTYPES[datatype]).reshape(-1)
    return flat.view(np.uint8).data


def bytes_element(value: object) -> bytes:
    """Gives one BYTES element as bytes; str as UTF-8.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise ValueError(f"BYTES element: expected bytes or str, got {type(value).__name__}")


def _encoded_elements(array: Array) -> Iterator[bytes]:
    for value in array.reshape(-1).tolist():
        element = bytes_element(value)
        if len(element) >= 2**32:
            raise ValueError(f"BYTES element: expected fewer than {2**32} bytes, got {len(element)}")
        yield _LENGTH.pack(len(element))
        yield element


def _decode_bytes(name: str, count: int, content: bytes | memoryview) -> Array:
    least = count * LENGTH_BYTES
    if least > len(content):
        raise ValueError(f"tensor '{name}': expected at least {least} bytes for {count} BYTES, got {len(content)}")
    content = bytes(content)
    length_at, size = _LENGTH.unpack_from, len(content)
    found: list[bytes] = []
    begin = end = 0
    # One step for each element: a slice past the end is short, and the next length is not there.
    with suppress(struct.error):
        for _ in range(count):
            begin = end + LENGTH_BYTES
            end = begin + length_at(content, end)[0]
            found.append(content[begin:end])
    if end > size:
        text = f"element {len(found) - 1} expected {end - begin} bytes, got {size - begin}"
        raise ValueError(f"tensor '{name}': {text}")
    if len(found) < count:
        text = f"element {len(found)} of {count} expected {LENGTH_BYTES} length bytes, got {size - end}"
        raise ValueError(f"tensor '{name}': {text}")
    if end != size:
        raise ValueError(f"tensor '{name}': expected {end} bytes for {count} BYTES elements, got {size}")
    elements = np.empty(count, object)
    elements[:] = found
    return elements
