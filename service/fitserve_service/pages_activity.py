"""Rates and latencies of the last seconds, from counters that only ever grow."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from fitserve_service.telemetry import SECONDS_BOUNDS, Instance, VersionCounts

_SAMPLES: Final = 6
"""Kept at any time: with one every 2 s, figures are of the last 10 s."""

_NOTHING: Final = VersionCounts()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one loaded instance of a version did within a window.

    Args:
        request_count: Requests that ended since it was loaded; Evaluate's not among them.
        requests_per_s: Of these, within the window.
        errors_per_s: Of these, those that failed.
        p50_ms: Half of the requests took at most this, to 10 %; None where none ended.
        p99_ms: 99 of 100 took at most this, to 10 %; None where none ended.
    """

    request_count: int
    requests_per_s: float
    errors_per_s: float
    p50_ms: float | None
    p99_ms: float | None


class Activity:
    """Remembers the counters of some moments. Thread-safe: samples are replaced, never changed.

    Args:
        counts: Gives the counters of each loaded instance of a version.
        clock: Monotonic seconds.
    """

    def __init__(
        self, counts: Callable[[], Mapping[Instance, VersionCounts]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counts = counts
        self._clock = clock
        self._samples = deque([(clock(), counts())], maxlen=_SAMPLES)

    def sample(self) -> None:
        """Takes a sample; the oldest goes."""
        self._samples.append((self._clock(), self._counts()))

    def figures(self) -> tuple[float, dict[Instance, Figures]]:
        """Gives the length of the window in seconds, and each instance's figures from its begin until now."""
        begin_s, before = self._samples[0]
        now = self._counts()
        window_s = max(self._clock() - begin_s, 1e-3)
        return window_s, {key: _between(before.get(key, _NOTHING), counts, window_s) for key, counts in now.items()}


def quantile_ms(counts: Sequence[int], share: float) -> float | None:
    """Gives the time that a share of requests stayed below, in milliseconds.

    Args:
        counts: Requests by SECONDS_BOUNDS, and those above the last of them.
        share: 0..1.

    Returns:
        The upper bound of the bucket that holds it, at most 10 % above; None where there are no requests.
    """
    totals = list(accumulate(counts))
    if not totals or not totals[-1]:
        return None
    bucket = bisect_left(totals, max(share * totals[-1], 1))
    return SECONDS_BOUNDS[min(bucket, len(SECONDS_BOUNDS) - 1)] * 1e3


def _between(before: VersionCounts, now: VersionCounts, window_s: float) -> Figures:
    if now.request_count < before.request_count:  # forgotten and counted anew: a version that went and came back
        before = _NOTHING
    old = before.latency or (0,) * len(now.latency)
    latency = [new - was for new, was in zip(now.latency, old, strict=True)]
    return Figures(
        request_count=now.request_count,
        requests_per_s=(now.request_count - before.request_count) / window_s,
        errors_per_s=max(now.error_count - before.error_count, 0) / window_s,
        p50_ms=quantile_ms(latency, 0.5),
        p99_ms=quantile_ms(latency, 0.99),
    )
