"""Quantities as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_benchmarks.quantities import duration, duration_with_interval, three_digits, times
from fitserve_benchmarks.statistics import Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.14, "9.14"), (9.996, "10.0"), (26.14, "26.1"), (99.96, "100"), (126.2, "126"), (13_900, "13,900")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(26.1e-6, "26.1 µs"), (1.17e-3, "1.17 ms"), (2.75, "2.75 s"), (5e-8, "50.0 ns"), (90, "90.0 s")],
)
def test_times_have_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(min_value=1e-9, max_value=1e5))
def test_a_time_reads_back_to_within_half_a_percent(seconds: float) -> None:
    number, unit = duration(seconds).split()
    size = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(seconds, rel=6e-3)


def test_an_interval_stands_in_the_estimates_unit() -> None:
    assert duration_with_interval(Interval(1.2e-3, 0.9e-3, 1.3e-3)) == "1.20 ms (0.90–1.30)"
    assert times(Interval(9.14, 8.9, 9.31)) == "9.14× (8.90–9.31)"
