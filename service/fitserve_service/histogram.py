"""Counts of values by upper bound, cheap to put values into."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final

import numpy as np

MOST_UNCOUNTED: Final = 1024
"""Values to put by before they are counted: more save no time."""


class Histogram:
    """Counts of values by upper bound. Values come from one thread, and are read from any.

    A value is put by first, and counted later, many at once: so it costs a tenth of a search among the bounds, which
    counts where ten thousand requests a second bring four each. Whoever puts values in calls `keep_up` now and then.

    Args:
        bounds: Upper bounds, ascending.
        exposed: Those of them that `cumulative` gives; all where it is None.
    """

    __slots__ = ("_array", "_counts", "_lock", "_total", "_values", "bounds", "exposed", "observe", "observe_all")

    def __init__(self, bounds: tuple[float, ...], exposed: tuple[float, ...] | None = None) -> None:
        self.bounds = bounds
        self.exposed = exposed or bounds
        self._array = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0
        self._values: list[float] = []
        self._lock = threading.Lock()
        self.observe: Callable[[float], None] = self._values.append
        """Counts one value."""
        self.observe_all: Callable[[Iterable[float]], None] = self._values.extend
        """Counts values."""

    @property
    def counts(self) -> list[int]:
        """Number of values up to each bound and above the one before; last those above all."""
        with self._lock:
            self._count()
            counts: list[int] = self._counts.tolist()
            return counts

    @property
    def total(self) -> float:
        """Sum of all values."""
        with self._lock:
            self._count()
            return self._total

    def keep_up(self) -> None:
        """Counts what was put by, where that is much."""
        if len(self._values) >= MOST_UNCOUNTED:
            with self._lock:
                self._count()

    def add(self, other: Histogram) -> None:
        """Counts all that another histogram of the same bounds has counted."""
        with other._lock:
            other._count()
            counts, total = other._counts.copy(), other._total
        with self._lock:
            self._counts += counts
            self._total += total

    def cumulative(self) -> list[tuple[str, float]]:
        """Gives each exposed bound with the number of values up to it, as Prometheus writes them."""
        totals = list(accumulate(self.counts))
        buckets = [(str(bound), float(totals[bisect_left(self.bounds, bound)])) for bound in self.exposed]
        return [*buckets, ("+Inf", float(totals[-1]))]

    def _count(self) -> None:
        # Values may be put in meanwhile, behind those that are taken here.
        values = self._values[:]
        del self._values[: len(values)]
        if values:
            places = np.searchsorted(self._array, values, side="left")
            self._counts += np.bincount(places, minlength=len(self._counts))
            self._total += sum(values)
