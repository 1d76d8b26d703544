"""The number of the last switch, in memory that all workers share: one store of it is the switch for all of them.

A worker compares it with the switch that it made last whenever it chooses a version. A request that comes to one worker
after another worker has answered by the new choice is therefore never answered by the old one.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

_BYTES: Final = 8


class SwitchCounter:
    """The parent's end; starts at 0."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("fitserve-switch")
        os.ftruncate(self.descriptor, _BYTES)
        self._memory = mmap.mmap(self.descriptor, _BYTES)
        self._number = memoryview(self._memory).cast("Q")

    def write(self, number: int) -> None:
        """Makes a switch that all workers have prepared."""
        # One aligned word: a reader sees the number before or this one, never a mixture.
        self._number[0] = number

    def close(self) -> None:
        """Lets the memory go."""
        self._number.release()
        self._memory.close()
        os.close(self.descriptor)


def open_counter(descriptor: int) -> memoryview:
    """Returns the worker's end: its element 0 is the number of the last switch."""
    return memoryview(mmap.mmap(descriptor, _BYTES, prot=mmap.PROT_READ)).cast("Q")
