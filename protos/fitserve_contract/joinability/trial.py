"""Runs rows beside hostile ones, and tells whether any of them felt it: what the static proof claims, tried out.

Rows that differ by orders of magnitude and sign, NaN and infinities, the extremes of integers, all true and all false
stand beside each other at every position of batches of several sizes. The rule is the one of `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from fitserve_contract.datatypes import BF16, BYTES, NUMPY_DTYPES
from fitserve_contract.joinability.rows import beside_copies, row_difference, rows_of, size_difference
from fitserve_contract.tensor_bytes import Array

Rows: TypeAlias = Mapping[str, Array]
Run: TypeAlias = Callable[[Rows], Rows | None]
"""Runs a batch, input name to (B, ...); returns output name to array, or None where the model refuses the values."""

SIZES: Final = (3, 2, 8)
"""Batch sizes that are tried, the one with a row between two others first."""

_MOST_ROWS: Final = 24
"""Kinds of rows in a trial at most."""

_LARGE_REALS: Final = (1e4, -1e4, 1e30, 1e-30, -255.0)
_TOKENS: Final = (30_000, 1_000, 100, 7)
"""Integers that a model takes whose extremes it refuses, such as numbers of words in its vocabulary."""


def trial_problem(
    run: Run, rows: Sequence[Rows], *, sizes: Sequence[int] = SIZES, is_over: Callable[[], bool] = lambda: False
) -> str:
    """Runs rows alone, beside copies of themselves and beside each other.

    Args:
        run: Runs a batch.
        rows: Input name to (1, ...): an ordinary row, then its neighbours. Those that the model refuses are left out.
        sizes: Batch sizes, the most telling one first. Those above the largest of SIZES are left out where the model
            does not run so many rows.
        is_over: Tells that no more time is to be spent; the ordinary row at the first size is tried in any case.

    Returns:
        What was found, for people; empty where no row depends on its neighbours.
    """
    ordinary = rows[0]
    alone = run(ordinary)
    if alone is None:
        return "the model does not run on the rows that are to be tried"
    accepted = [ordinary, *(row for row in rows[1:] if not is_over() and run(row) is not None)]
    for index, size in enumerate(sizes):
        if index and is_over():
            break
        trial = _Trial(run, accepted, size)
        if size > max(SIZES) and not trial.can_run():
            continue
        least = size if index == 0 else 1
        problem = trial.size_problem(alone) or trial.neighbour_problem(least, is_over)
        if problem:
            return problem
    return ""


def hostile_rows(row: Rows, datatypes: Mapping[str, str]) -> list[dict[str, Array]]:
    """Makes neighbours of a row: one for each kind of hostile values, in all inputs at once and in each by itself.

    Args:
        row: Input name to (1, ...), an ordinary row.
        datatypes: Input name to its datatype.

    Returns:
        At most _MOST_ROWS rows of the same shapes, the most telling first.
    """
    kinds = {name: list(_hostile_values(datatypes[name], array.shape)) for name, array in row.items()}
    most = max(map(len, kinds.values()), default=0)
    together = [{name: values[index % len(values)] for name, values in kinds.items()} for index in range(most)]
    if len(row) == 1:
        return together[:_MOST_ROWS]
    apart = [{**row, name: values[index]} for index in range(most) for name, values in kinds.items()
             if index < len(values)]  # fmt: skip
    half = _MOST_ROWS // 2
    return [*together[:half], *apart[: _MOST_ROWS - min(half, len(together))]]


class _Trial:
    """Batches of one size. Keeps each row's answers beside copies of itself."""

    def __init__(self, run: Run, rows: Sequence[Rows], size: int) -> None:
        self._run = run
        self._rows = rows
        self._size = size
        self._copies: dict[int, Rows | None] = {}

    def can_run(self) -> bool:
        """Tells whether the model runs so many rows of the ordinary kind."""
        return self._beside_copies(0) is not None

    def size_problem(self, alone: Rows) -> str:
        """Runs the ordinary row beside copies of itself, twice: is it repeatable, and a row for each row?"""
        size = self._size
        copies, again = self._beside_copies(0), self._run(beside_copies(self._rows[0], size))
        if copies is None or again is None:
            return f"the model does not run {size} rows together"
        for name, array in copies.items():
            if array.shape[:1] != (size,) or alone[name].shape != (1, *array.shape[1:]):
                return f"output '{name}' does not give one row for each row of the inputs"
        if difference := row_difference(copies, again):
            return f"two runs of the same {size} rows differ: {difference}"
        if difference := size_difference(alone, rows_of(copies, 0, 1)):
            return f"a row alone differs from the same row among {size}: {difference}"
        return ""

    def neighbour_problem(self, least: int, is_over: Callable[[], bool]) -> str:
        """Runs every row between others, those batches first that hold the ordinary row.

        Args:
            least: Batches that are tried in any case.
            is_over: No more time is to be spent.
        """
        count = len(self._rows)
        for tried, start in enumerate(_starts(count, self._size)):
            if tried >= least and is_over():
                break
            kinds = [(start + position) % count for position in range(self._size)]
            joined = self._run(_stacked([self._rows[kind] for kind in kinds]))
            if joined is not None and (problem := self._batch_problem(joined, kinds, is_over)):
                return problem
        return ""

    def _batch_problem(self, joined: Rows, kinds: Sequence[int], is_over: Callable[[], bool]) -> str:
        for position, kind in enumerate(kinds):
            if kind and kind not in self._copies and is_over():
                continue
            copies = self._beside_copies(kind)
            if copies is None:
                continue
            difference = row_difference(rows_of(copies, position, 1), rows_of(joined, position, 1))
            if difference:
                return f"row {position} of {self._size} depends on its neighbours: {difference}"
        return ""

    def _beside_copies(self, kind: int) -> Rows | None:
        if kind not in self._copies:
            self._copies[kind] = self._run(beside_copies(self._rows[kind], self._size))
        return self._copies[kind]


def _starts(count: int, size: int) -> Iterator[int]:
    """Yields where batches begin in the ring of rows: first those that hold row 0, from its middle position on."""
    holding = sorted(range(size), key=lambda position: abs(position - size // 2))
    first = list(dict.fromkeys(-position % count for position in holding))
    yield from first
    yield from (start for start in range(count) if start not in first)


def _stacked(rows: Sequence[Rows]) -> dict[str, Array]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _hostile_values(datatype: str, shape: tuple[int, ...]) -> Iterator[Array]:
    if datatype == BYTES:
        yield from _texts(shape)
        return
    dtype = NUMPY_DTYPES[datatype]
    if datatype == BF16:
        for reals in _reals(np.dtype(np.float32), shape):
            yield (reals.view(np.uint32) >> 16).astype(dtype)
    elif dtype.kind == "f":
        yield from _reals(dtype, shape)
    elif dtype.kind == "b":
        yield from (np.ones(shape, dtype), np.zeros(shape, dtype), np.arange(np.prod(shape)).reshape(shape) % 2 == 0)
    else:
        # Neither -1 nor the smallest integer: the quotient of both ends the process that runs the model.
        info: np.iinfo[Any] = np.iinfo(dtype.type)
        values = [info.max, info.min + (dtype.kind == "i"), 0, 1, *(token for token in _TOKENS if token <= info.max)]
        yield from (np.full(shape, value, dtype) for value in values)


def _reals(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[Array]:
    random = np.random.default_rng(1)
    largest = float(np.finfo(dtype.type(0)).max) / 4
    yield np.full(shape, min(_LARGE_REALS[0], largest), dtype)
    yield np.full(shape, np.nan, dtype)
    yield np.full(shape, np.inf, dtype)
    yield np.full(shape, -np.inf, dtype)
    yield np.zeros(shape, dtype)
    for scale in _LARGE_REALS:
        values = random.standard_normal(shape) * scale
        yield np.asarray(np.clip(values, -largest, largest), dtype)
    mixed = random.standard_normal(shape)
    mixed.reshape(-1)[:: max(mixed.size // 3, 1)] = np.nan
    yield mixed.astype(dtype)


def _texts(shape: tuple[int, ...]) -> Iterator[Array]:
    for text in (b"", b"x" * 1_000, "\u00e9\u4e2d \u0416".encode(), b"-1e9", b"0"):
        values = np.empty(shape, object)
        values.reshape(-1)[:] = text
        yield values
