"""Figures out of timings: percentiles with the number of samples they need, intervals, stability.

A *trial* is one uninterrupted block of calls of one contestant; contestants take turns, so that the n-th trials of two
of them ran side by side. Times are in seconds. Shapes: T trials, K calls per trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Final, TypeAlias

import numpy as np

Times: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE: Final = 0.95
"""Confidence of every interval that is printed."""

PERCENTILE_ERROR: Final = 0.005
"""A percentile is printed where its rank is known to half a percentage point."""

STABILITY_WINDOWS: Final = 3
STABILITY_BOUND: Final = 0.10
"""A row whose last three windows differ by more than 10 % is marked unstable."""

_RESAMPLES: Final = 2_000
_QUANTILE_RESAMPLES: Final = 500
_BOOTSTRAP_SEED: Final = 20_240_229


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval at 95 %."""

    estimate: float
    low: float
    high: float


def samples_for_percentile(fraction: float, error: float = PERCENTILE_ERROR) -> int:
    """Counts the samples that put a percentile's rank within ± `error` at 95 % confidence: 1,521 for p99 ± 0.5 points.

    Args:
        fraction: The percentile as a fraction, strictly between 0 and 1.
        error: Half width of the rank's interval, as a fraction.

    Raises:
        ValueError: an argument is outside its range.

    Source: normal approximation of the binomial, n = p (1 - p) (z / error)².
    """
    if not 0 < fraction < 1 or not 0 < error < 1:
        raise ValueError(f"percentile: expected a fraction and an error in (0, 1), got {fraction} and {error}")
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return max(1, round(fraction * (1 - fraction) * (z / error) ** 2))


def percentile(times_s: Times, fraction: float) -> float | None:
    """Gives a percentile, or None where there are fewer samples than `samples_for_percentile` asks for."""
    if times_s.size < samples_for_percentile(fraction):
        return None
    return float(np.quantile(times_s, fraction))


def bootstrap_median(values: Times) -> Interval:
    """Gives the median with its percentile-bootstrap interval; the same values give the same interval.

    Trials are what is resampled, not calls: calls of one trial share its weather and would make it look too narrow.

    Args:
        values: (T) one value per trial, T >= 1.

    Raises:
        ValueError: there are no values.
    """
    if not values.size:
        raise ValueError("bootstrap: expected at least 1 value, got none")
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    picks = generator.integers(0, values.size, size=(_RESAMPLES, values.size))
    medians = np.median(values[picks], axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.median(values)), float(low), float(high))


def sign_test_rank(count: int) -> int:
    """Returns the rank from either end whose values bound the median at 95 % confidence or more; 0 below 6 values.

    Whatever the distribution, the k-th smallest of n independent values lies above the median with probability
    P(Binomial(n, 1/2) < k). The rank is the largest k that keeps it within 2.5 %, at both ends alike.

    Source: the sign test's critical values; H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition (2003),
    section 7.1.
    """
    most = (1 - CONFIDENCE) / 2 * 2**count
    tails = accumulate(math.comb(count, below) for below in range(count + 1))
    return next(below for below, tail in enumerate(tails) if tail > most)


def median_interval(values: Times) -> Interval | None:
    """Returns the median with its distribution-free interval, None where there are too few values for 95 % confidence.

    The interval is exact at any number of values, where a bootstrap's is too narrow for few; see `sign_test_rank`.

    Args:
        values: (T) independent, one per trial.
    """
    rank = sign_test_rank(values.size)
    if rank == 0:
        return None
    ordered = np.sort(values)
    return Interval(float(np.median(values)), float(ordered[rank - 1]), float(ordered[-rank]))


def bootstrap_quantile(times_s: Times, fraction: float) -> Interval:
    """Gives a percentile of all calls with its bootstrap interval; trials are what is resampled, as for the median.

    Args:
        times_s: (T, K) each call's time by trial, T >= 1 and K >= 1.
        fraction: The percentile as a fraction.

    Raises:
        ValueError: there are no calls.
    """
    if not times_s.size:
        raise ValueError("bootstrap: expected at least 1 call, got none")
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    picks = generator.integers(0, len(times_s), size=(_QUANTILE_RESAMPLES, len(times_s)))
    # Few trials make few different resamples: each multiset of them is computed once.
    found = {tuple(pick): 0.0 for pick in np.sort(picks, axis=1).tolist()}
    for pick in found:
        found[pick] = float(np.quantile(times_s[list(pick)], fraction))
    estimates = [found[tuple(pick)] for pick in np.sort(picks, axis=1).tolist()]
    low, high = np.quantile(estimates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.quantile(times_s, fraction)), float(low), float(high))


def is_unstable(window_medians: Sequence[float] | Times) -> bool:
    """Tells whether the last three windows differ by more than 10 %, the largest against the smallest.

    Fewer than three windows prove nothing, and count as unstable.
    """
    last = np.asarray(window_medians, dtype=np.float64)[-STABILITY_WINDOWS:]
    if last.size < STABILITY_WINDOWS:
        return True
    return bool(last.max() > last.min() * (1 + STABILITY_BOUND))


def windows(medians: Times, count: int = 10) -> Times:
    """Joins trials, in order, into at most `count` windows of nearly equal length; gives each window's median."""
    parts = np.array_split(medians, min(count, medians.size)) if medians.size else []
    return np.array([np.median(part) for part in parts], dtype=np.float64)


def ratio(baseline_medians_s: Times, medians_s: Times) -> Interval:
    """Gives how many times as fast as the baseline a contestant is, trial by trial: above 1 it is faster.

    Args:
        baseline_medians_s: (T) each trial's median of the baseline.
        medians_s: (T) the same of the contestant, its n-th trial run beside the baseline's n-th.

    Raises:
        ValueError: they have different numbers of trials.
    """
    if baseline_medians_s.shape != medians_s.shape:
        raise ValueError(f"ratio: expected {baseline_medians_s.size} trials as the baseline has, got {medians_s.size}")
    return bootstrap_median(baseline_medians_s / medians_s)
