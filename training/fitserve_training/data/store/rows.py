"""Rows that are computed once: in memory where they are few, otherwise in a mapped file. torch is not needed.

Residence never changes a value: the same arrays lie here or there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Protocol

import numpy as np

from fitserve_training.data.store import cache_folder
from fitserve_training.data.store.array_file import Array, ArrayPlan
from fitserve_training.data.store.cache_folder import Stored
from fitserve_training.errors import UsageError

VARIABLE: Final = "FITSERVE_DATA_STORE"
_MOST_IN_MEMORY: Final = 64 << 20
"""Rows of more bytes, or from files of more bytes, are worth a file: it is made once, and its memory can be taken."""


class Residence(StrEnum):
    """Where rows are kept: `auto` means in memory where they are few."""

    AUTO = "auto"
    MEMORY = "memory"
    DISK = "disk"


class Writer(Protocol):
    """Takes rows; safe to use by threads that write different ones."""

    def write(self, name: str, first_row: int, rows: Array) -> None:
        """Writes rows (B, …) of an array, from `first_row`."""


class MemoryWriter:
    """Fills arrays in memory."""

    def __init__(self, plans: Mapping[str, ArrayPlan]) -> None:
        self.arrays: dict[str, Array] = {name: np.zeros(plan.shape, plan.dtype) for name, plan in plans.items()}

    def write(self, name: str, first_row: int, rows: Array) -> None:
        """Copies rows (B, …) to their place."""
        self.arrays[name][first_row : first_row + len(rows)] = rows


def residence() -> Residence:
    """Reads the environment's FITSERVE_DATA_STORE.

    Raises:
        UsageError: it is none of auto, memory and disk.
    """
    text = os.environ.get(VARIABLE) or Residence.AUTO
    try:
        return Residence(text)
    except ValueError:
        raise UsageError(f"environment: {VARIABLE}: expected {', '.join(Residence)}, got {text!r}") from None


def is_on_disk(byte_count: int, source_byte_count: int = 0) -> bool:
    """Says whether rows of so many bytes, computed from files of so many, go to a file."""
    chosen = residence()
    return chosen is Residence.DISK or (
        chosen is Residence.AUTO and max(byte_count, source_byte_count) > _MOST_IN_MEMORY
    )


def key_of(*parts: Any) -> str:
    """Hashes JSON-able parts: all that rows depend on, content and settings."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stored_rows(
    key: str,
    plans: Mapping[str, ArrayPlan],
    what: str,
    fill: Callable[[Writer], Mapping[str, Any]],
    source_byte_count: int = 0,
    *,
    is_content_checked: bool = True,
) -> Stored:
    """Gives the arrays of a key, filled unless a file has them already.

    Args:
        key: Hash of all that the rows depend on.
        plans: Of the arrays, by name.
        what: Of what the rows are, for messages.
        fill: Writes all rows and returns facts, JSON-able.
        source_byte_count: Of the files that they are computed from.
        is_content_checked: Whether all bytes of a file that is found are compared with their digest; facts alone are.

    Raises:
        UsageError: the disk is full.
    """
    if is_on_disk(sum(plan.byte_count for plan in plans.values()), source_byte_count):
        found = cache_folder.find(key, is_content_checked=is_content_checked)
        return cache_folder.make(key, plans, what, fill) if found is None else found
    writer = MemoryWriter(plans)
    facts = fill(writer)
    return writer.arrays, dict(facts)
