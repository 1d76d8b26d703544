"""Arrays in one file that is mapped into memory, never read whole. torch is not needed.

Layout: a page of magic, place, length and SHA-256 of the description; the arrays, each from a page's start; the
description in JSON, which names the arrays and has the digest of all their bytes. The first page is written last, so a
file without it is unfinished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"

_MAGIC: Final = b"fitserve-rows-2\n"
_HEAD: Final = struct.Struct("<16sQQ32s")
_PAGE: Final = 4096
_BLOCK: Final = 16 << 20
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True)
class ArrayPlan:
    """Elements and shape of an array that is to be filled."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class DamagedFileError(Exception):
    """A file is not what `ArrayFileWriter` wrote; the message is the reason."""


class ArrayFileWriter:
    """Fills the arrays of a new file; safe to use by threads that write different rows.

    It writes and does not map: a full disk is an OSError then, and no signal that ends the process.
    """

    def __init__(self, descriptor: int, plans: Mapping[str, ArrayPlan]) -> None:
        self._descriptor, self._plans = descriptor, plans
        self._offsets: dict[str, int] = {}
        end = _PAGE
        for name, plan in plans.items():
            self._offsets[name] = end
            end += -(-plan.byte_count // _PAGE) * _PAGE
        self._end = end
        _reserve(descriptor, end)

    def write(self, name: str, first_row: int, rows: Array) -> None:
        """Writes rows (B, …) of an array, from `first_row`.

        Raises:
            OSError: the disk is full or refuses.
        """
        plan = self._plans[name]
        if rows.shape[1:] != plan.shape[1:] or first_row + len(rows) > plan.shape[0]:
            raise ValueError(f"array {name!r}: expected rows of {plan.shape}, got {rows.shape} at row {first_row}")
        content = np.ascontiguousarray(rows, plan.dtype).data.cast("B") if rows.size else memoryview(b"")
        place = self._offsets[name] + first_row * (plan.byte_count // max(1, plan.shape[0]))
        while content:
            written = os.pwrite(self._descriptor, content, place)
            content, place = content[written:], place + written

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Writes the description with `facts`, JSON-able, and has all of it on the disk."""
        arrays = {name: [plan.dtype, plan.shape, self._offsets[name]] for name, plan in self._plans.items()}
        content = _content_sha256(self._descriptor, self._end)
        text = json.dumps({"arrays": arrays, "facts": facts, "content": content}).encode()
        os.pwrite(self._descriptor, text, self._end)
        os.fsync(self._descriptor)
        os.pwrite(self._descriptor, _HEAD.pack(_MAGIC, self._end, len(text), hashlib.sha256(text).digest()), 0)
        os.fsync(self._descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Takes the space at once, so that a disk without it refuses before the work and not after."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        os.ftruncate(descriptor, size)


def _content_sha256(descriptor: int, end: int) -> str:
    """Hashes the arrays' bytes, block by block with all cores; SHA-256 of the SHA-256 of the blocks."""

    def digest(place: int) -> bytes:
        return hashlib.sha256(os.pread(descriptor, min(_BLOCK, end - place), place)).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, range(_PAGE, end, _BLOCK)))).hexdigest()


def open_arrays(path: Path, *, is_content_checked: bool = True) -> tuple[dict[str, Array], dict[str, Any]]:
    """Maps the arrays of a file, read-only; gives them by name, and the facts.

    Args:
        path: The file.
        is_content_checked: Reads all bytes of the arrays once and compares them with their digest.

    Raises:
        DamagedFileError: it is unfinished, cut, or not what was written.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise DamagedFileError("shorter than its first page")
        magic, end, length, digest = _HEAD.unpack(head)
        size = os.fstat(file.fileno()).st_size
        if magic != _MAGIC or size != end + length:
            raise DamagedFileError(f"expected {end + length} bytes after {_MAGIC!r}, got {size} after {magic!r}")
        file.seek(end)
        text = file.read(length)
        if hashlib.sha256(text).digest() != digest:
            raise DamagedFileError("its description has another checksum")
        document = json.loads(text)
        if is_content_checked and _content_sha256(file.fileno(), end) != document["content"]:
            raise DamagedFileError("its content has another checksum")
    arrays = {name: _mapped(path, *spec) for name, spec in document["arrays"].items()}
    return arrays, document["facts"]


def _mapped(path: Path, dtype: str, shape: list[int], offset: int) -> Array:
    if not prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, tuple(shape))
