"""What the network behind a table takes: numbers and codes, computed from the served inputs in numpy.

This is the reference of the preprocessing in the served graph, element by element and to the bit: codes are integers,
and a number is read in float64 and rounded once to float32.
Shapes: B rows, D numbers, K categories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from fitserve_contract.columns import OTHER, Column, ColumnKind, TableColumns, read_amount
from fitserve_contract.tensor_bytes import Array

NUMBERS: Final = "numbers"
CODES: Final = "codes"


def encoded(table: TableColumns, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Encodes served inputs, BYTES as `bytes` or `str`.

    Args:
        table: The columns, not joined.
        inputs: Input name to (B, 1).

    Returns:
        NUMBERS float32 (B, D), where NaN is missing and infinity no number, and CODES int64 (B, K); each only where
        there are such columns.
    """
    parts = {
        NUMBERS: [_numbers(column, inputs[column.input]) for column in table.numbers],
        CODES: [_codes(column, inputs[column.input]) for column in table.categories],
    }
    return {name: np.concatenate(arrays, axis=1) for name, arrays in parts.items() if arrays}


def _numbers(column: Column, array: Array) -> Array:
    if column.kind is ColumnKind.NUMBER:
        return array
    with np.errstate(over="ignore"):
        return _each(array, read_amount).astype(np.float64).astype(np.float32)


def _codes(column: Column, array: Array) -> Array:
    codes = column.codes()
    return _each(array, lambda cell: codes.get(cell, OTHER)).astype(np.int64)


def _each(array: Array, read: Callable[[str], float]) -> Array:
    """Reads every cell, each different one once."""
    cells = array.reshape(-1).tolist()
    known = {cell: read(_text(cell)) for cell in set(cells)}
    return np.array(list(map(known.__getitem__, cells))).reshape(array.shape)


def _text(cell: bytes | str) -> str:
    return cell.decode(errors="surrogateescape") if isinstance(cell, bytes) else cell
