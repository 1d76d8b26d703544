"""Quantities as people read them: three digits and a unit that fits."""

from __future__ import annotations

from fitserve_benchmarks.statistics import Interval


def duration(seconds: float) -> str:
    """Writes a time: `26.1 µs`, `1.17 ms`, `2.75 s`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{three_digits(seconds / size)} {unit}"
    return f"{three_digits(seconds * 1e9)} ns"


def three_digits(value: float) -> str:
    """Writes a positive number with three digits, more where it is 1,000 or above: `9.14`, `26.1`, `126`, `13,900`."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(interval: Interval) -> str:
    """Writes a ratio with its interval: `9.14× (8.90–9.31)`."""
    return f"{three_digits(interval.estimate)}× ({three_digits(interval.low)}–{three_digits(interval.high)})"


def duration_range(interval: Interval) -> str:
    """Writes the two ends of an interval of times: `25.8 µs – 26.4 µs`."""
    return f"{duration(interval.low)} – {duration(interval.high)}"
