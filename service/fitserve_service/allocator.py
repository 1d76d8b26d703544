"""The C allocator's dealings with the system: what a server has freed it needs again at once, until it is idle.

Left as it is, glibc maps what is large anew each time, and each page of it costs a fault: for 10 MB in and out that was
26 of 41 ms of processor time a request. Elsewhere than with glibc, nothing here does anything.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from fitserve_service.calls import Loop

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

MAPPED_FROM_BYTES: Final = 32 << 20
"""What is larger is mapped by itself, and unmapped when it is freed: the most that glibc takes for this bound."""

KEPT_BYTES: Final = 256 << 20
"""The most that is kept of freed memory, at the end of each of the allocator's heaps."""

_LOOK_S: Final = 10.0


def keep_freed_memory() -> None:
    """Has this process keep up to `KEPT_BYTES` of what it frees, for what it allocates next."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_memory() -> None:
    """Gives the system what this process has freed."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


class IdleReturn:
    """Gives freed memory back once a server has had nothing to do for a while. Lives on the loop thread.

    Args:
        loop: Looks every ten seconds.
        work_count: Counts requests since the start; where it has stayed the same from one look to the next, the server
            is idle.
        give_back: Gives memory back.
    """

    def __init__(
        self, loop: Loop, work_count: Callable[[], int], give_back: Callable[[], None] = return_freed_memory
    ) -> None:
        self._loop = loop
        self._work_count = work_count
        self._give_back = give_back
        self._seen_count = self._returned_count = 0

    def start(self) -> None:
        """Begins to look."""
        self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        count = self._work_count()
        if count == self._seen_count != self._returned_count:
            self._returned_count = count
            self._give_back()
        self._seen_count = count
        self.start()


def _function(name: str) -> Any:
    """Finds a function of the C library; None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None)
