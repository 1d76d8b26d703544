"""Compares a row of a batch with the same row beside copies of itself: the one rule for exporter, trial and spot check.

A kernel may add in another order at another batch size or position, but never because of what the neighbours hold. So a
row is compared at one size and one position, and must agree in every bit. Alone and joined then differ by exactly what
the row beside copies of itself differs from itself alone: rounding of the kernels, whoever the neighbours are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from fitserve_contract.tensor_bytes import Array, shape_text

SIZE_TOLERANCES: Final = {2: 2e-2, 4: 1e-3, 8: 1e-6}
"""Bytes of a float to how far a row may be off at another batch size, relative to its largest value: kernels round
otherwise there. Only a dependence on the size itself, such as a division by it, is larger."""


_MOST_ROUNDING: Final = 0.1


def beside_copies(inputs: Mapping[str, Array], size: int, position: int = 0) -> dict[str, Array]:
    """Fills a batch with the rows of one request.

    Args:
        inputs: Input name to (R, ...), R >= 1.
        size: Rows of the batch, B >= position + R.
        position: Where the request's rows stand.

    Returns:
        Input name to (B, ...): rows position to position + R are the request's own, all others are copies of them.
    """
    count = len(next(iter(inputs.values())))
    index = (np.arange(size) - position) % count
    return {name: array[index] for name, array in inputs.items()}


def rows_of(outputs: Mapping[str, Array], position: int, count: int) -> dict[str, Array]:
    """Returns the rows of one request, (count, ...) for each output."""
    return {name: array[position : position + count] for name, array in outputs.items()}


def row_difference(expected: Mapping[str, Array], found: Mapping[str, Array]) -> str:
    """Compares answers bit by bit; any NaN equals any other.

    Args:
        expected: Output name to the row beside copies of itself, (R, ...).
        found: The same row beside others, at the same size and position.

    Returns:
        Output and largest difference, for people; empty where all bits agree.
    """
    for name, one in expected.items():
        other = found[name]
        if one.shape != other.shape:
            return f"output '{name}': expected shape {shape_text(one.shape)}, got {shape_text(other.shape)}"
        if not is_identical(one, other):
            return f"output '{name}': {_difference_text(one, other)}"
    return ""


def size_difference(alone: Mapping[str, Array], joined: Mapping[str, Array]) -> str:
    """Compares a row with the same row at another batch size, where kernels round otherwise (see SIZE_TOLERANCES).

    Args:
        alone: Output name to (1, ...).
        joined: The same row beside copies of itself, (1, ...).

    Returns:
        Output and largest difference, for people; empty where they differ by rounding at most.
    """
    for name, one in alone.items():
        other = joined[name]
        if one.shape != other.shape:
            return f"output '{name}': expected shape {shape_text(one.shape)}, got {shape_text(other.shape)}"
        is_close = one.dtype.kind == "f" and _is_close(one, other, SIZE_TOLERANCES[one.dtype.itemsize])
        if not (is_close or is_identical(one, other)):
            return f"output '{name}': {_difference_text(one, other)}"
    return ""


def size_dependence(alone: Mapping[str, Array], joined: Mapping[str, Array]) -> str:
    """Tells whether an answer depends on the size of its batch by more than any rounding explains.

    Unlike `size_difference` it is fit for real requests, whose answers may cancel or change a class by rounding: shapes
    must agree, and reals but for a tenth of the largest (a division by the number of rows changes half of it or more).

    Args:
        alone: Output name to a request's rows, run by themselves.
        joined: The same rows of a larger batch.

    Returns:
        Output and what differs, for people; empty where nothing does.
    """
    for name, one in alone.items():
        other = joined[name]
        if one.shape != other.shape:
            return f"output '{name}': expected shape {shape_text(one.shape)}, got {shape_text(other.shape)}"
        if one.dtype.kind == "f" and not _is_close(one, other, _MOST_ROUNDING):
            return f"output '{name}': {_difference_text(one, other)} to the same rows alone"
    return ""


def is_identical(one: Array, other: Array) -> bool:
    """Tells whether two arrays have the same dtype, shape and bits; any NaN equals any other."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype == object:
        return bool((one == other).all())
    if one.tobytes() == other.tobytes():
        return True
    if one.dtype.kind != "f":
        return False
    is_nan = np.isnan(one)
    kept = ~is_nan
    return bool((is_nan == np.isnan(other)).all()) and one[kept].tobytes() == other[kept].tobytes()


def _is_close(one: Array, other: Array, share: float) -> bool:
    finite = np.abs(one[np.isfinite(one)], dtype=np.float64)
    allowed = share * max(float(finite.max(initial=0.0)), 1e-6)
    return bool(np.allclose(one, other, rtol=0.0, atol=allowed, equal_nan=True))


def _difference_text(one: Array, other: Array) -> str:
    if one.dtype == object or one.dtype.kind not in "fiu":
        return f"{int((one != other).sum())} of {one.size} elements differ"
    with np.errstate(all="ignore"):
        gaps = np.abs(one.astype(np.float64) - other.astype(np.float64))
    finite = gaps[np.isfinite(gaps)]
    return f"largest difference {float(finite.max(initial=0.0)):.3g}"
