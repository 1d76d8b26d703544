"""Quantities as people read them: three digits and a unit that fits."""

from __future__ import annotations

from fitserve_benchmarks.statistics import Interval


def duration(seconds: float) -> str:
    """Writes a time: `26.1 µs`, `1.17 ms`, `2.75 s`."""
    unit, size = _unit(seconds)
    return f"{three_digits(seconds / size)} {unit}"


def duration_with_interval(interval: Interval) -> str:
    """Writes a time and its interval in one unit: `26.1 µs (25.8–26.4)`."""
    _, size = _unit(interval.estimate)
    low, high = three_digits(interval.low / size), three_digits(interval.high / size)
    return f"{duration(interval.estimate)} ({low}–{high})"


def rate_with_interval(interval: Interval) -> str:
    """Writes a rate and its interval: `13,900 (13,700–14,100)`."""
    low, high = three_digits(interval.low), three_digits(interval.high)
    return f"{three_digits(interval.estimate)} ({low}–{high})"


def three_digits(value: float) -> str:
    """Writes a positive number with three digits, more where it is 1,000 or above: `9.14`, `26.1`, `126`, `13,900`."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(interval: Interval) -> str:
    """Writes a ratio with its interval: `9.14× (8.90–9.31)`."""
    return f"{three_digits(interval.estimate)}× ({three_digits(interval.low)}–{three_digits(interval.high)})"


def threads_text(count: int) -> str:
    """Writes a thread count: `1 thread`, `2 threads`."""
    return f"{count} thread" + ("s" if count > 1 else "")


def _unit(seconds: float) -> tuple[str, float]:
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    return next(((unit, size) for unit, size in units if seconds >= size), ("ns", 1e-9))
