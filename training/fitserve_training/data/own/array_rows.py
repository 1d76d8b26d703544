"""A large array of an .npz file as rows of a mapped file, read by blocks; torch is not needed. Shapes: N examples."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from fitserve_training.data.store.array_file import Array, ArrayPlan
from fitserve_training.data.store.bar import counted
from fitserve_training.data.store.rows import Writer, key_of, stored_rows
from fitserve_training.errors import UsageError

_FORMAT: Final = "array-1"
_BLOCK_BYTES: Final = 8 << 20
_LARGEST: Final = np.float64(np.finfo(np.float32).max)


def array_rows(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Copies an array to a file, or finds it copied: (N, …), bytes as uint8 and all other numbers as float32.

    Args:
        path: The .npz file.
        name: Of the array, which has rows in order of memory.
        shape: (N, …).
        dtype: Of its elements.

    Raises:
        UsageError: a row holds what is no finite number, or the disk is full.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    plan = ArrayPlan("uint8" if dtype == np.uint8 else "float32", shape)

    def fill(writer: Writer) -> dict[str, Any]:
        with counted("examples", shape[0]) as done:
            for first, rows in _blocks(path, name, shape, dtype):
                check_finite_rows(path, name, rows, first)
                with np.errstate(over="ignore"):
                    writer.write("rows", first, rows.astype(plan.dtype))
                done(len(rows))
        return {}

    arrays, _ = stored_rows(key_of(_FORMAT, digest, name), {"rows": plan}, "examples", fill, path.stat().st_size)
    return arrays["rows"]


def header_of(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Reads shape and elements of an array without its content; None where its rows are not in order of memory."""
    with _member(path, name) as (_, shape, is_by_columns, dtype):
        return None if is_by_columns and len(shape) > 1 else (shape, dtype)


def check_finite_rows(path: Path, name: str, rows: Array, first: int = 0) -> None:
    """Checks that rows hold finite numbers, as float32 has them.

    Raises:
        UsageError: one does not; the message names it, counted from `first`.
    """
    if rows.dtype.kind != "f" or not rows.size:
        return
    flat = rows.reshape(len(rows), -1)
    bad = ~(np.isfinite(flat) & (np.abs(flat) <= _LARGEST)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        found = "NaN or infinity" if not np.isfinite(flat[row]).all() else f"{np.abs(flat[row]).max():g}"
        raise UsageError(
            f"data {path}: array '{name}' row {first + row}: expected finite numbers that float32 holds, got {found}"
        )


def _blocks(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[tuple[int, Array]]:
    row_bytes = max(1, prod(shape[1:]) * dtype.itemsize)
    size = max(1, _BLOCK_BYTES // row_bytes)
    with _member(path, name) as (file, _, _, _):
        for first in range(0, shape[0], size):
            count = min(size, shape[0] - first)
            content = file.read(count * row_bytes)
            if len(content) < count * row_bytes:
                raise UsageError(f"data {path}: array '{name}': expected {shape[0]} rows, got fewer; the file is cut")
            yield first, np.frombuffer(content, dtype).reshape(count, *shape[1:])


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_by_columns, dtype = read(file)
        yield file, shape, is_by_columns, dtype
