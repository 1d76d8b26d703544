"""Which batches cost least: against brute force, and against what a curve must be."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.batch_sizes import cheapest_plans, cost_curve, first_batches, isotonic, row_cost

SECONDS = st.floats(1e-6, 1.0)
CURVES = st.lists(SECONDS, min_size=1, max_size=9)
MEASURED = st.dictionaries(st.integers(1, 64), SECONDS, min_size=1, max_size=6)


def brute_force(costs: list[float], rows: int) -> float:
    """The least cost of every way to split rows, by trying them all."""

    @cache
    def least(left: int) -> float:
        return 0.0 if left == 0 else min(costs[part - 1] + least(left - part) for part in range(1, left + 1))

    return least(rows)


@given(CURVES)
def test_plans_are_the_best_there_are(costs: list[float]) -> None:
    least = cheapest_plans(np.array(costs))
    assert list(least) == pytest.approx([brute_force(costs, rows) for rows in range(len(costs) + 1)])


@given(CURVES)
def test_following_the_first_batches_costs_the_least(costs: list[float]) -> None:
    first = first_batches(np.array(costs), least_gain=0.0)
    for rows in range(1, len(costs) + 1):
        left, total = rows, 0.0
        while left:
            assert 1 <= first[left] <= left
            total += costs[first[left] - 1]
            left -= first[left]
        assert total == pytest.approx(brute_force(costs, rows))


@given(CURVES)
def test_no_batch_is_made_that_costs_noticeably_more_than_its_parts(costs: list[float]) -> None:
    for rows, part in enumerate(first_batches(np.array(costs), least_gain=0.1)):
        if rows and part == rows:
            assert costs[rows - 1] * 0.9 <= brute_force(costs, rows) * (1 + 1e-9)


def test_a_cliff_is_not_climbed() -> None:
    costs = np.array([1.0, 1.1, 1.2, 1.3, 9.0, 9.1, 9.2, 9.3])
    assert first_batches(costs)[1:] == [1, 2, 3, 4, 4, 4, 4, 4]


def test_costs_in_proportion_are_not_split() -> None:
    assert first_batches(np.arange(1.0, 9.0))[1:] == [1, 2, 3, 4, 5, 6, 7, 8]


@given(st.lists(SECONDS, min_size=1, max_size=20))
def test_isotonic_values_never_fall_and_keep_the_sum(values: list[float]) -> None:
    smooth = isotonic(values)
    assert all(left <= right * (1 + 1e-12) for left, right in pairwise(smooth))
    assert sum(smooth) == pytest.approx(sum(values))


@given(st.lists(SECONDS, min_size=1, max_size=20))
def test_values_that_never_fall_stay(values: list[float]) -> None:
    assert isotonic(sorted(values)) == sorted(values)


@given(MEASURED, st.integers(1, 100))
def test_a_curve_never_falls(measured: dict[int, float], most: int) -> None:
    curve = cost_curve(measured, most)
    assert curve.shape == (most,)
    assert (np.diff(curve) >= -1e-12).all()


def test_a_curve_joins_what_was_measured() -> None:
    curve = cost_curve({2: 1.0, 4: 3.0}, 8)
    assert list(curve) == [1.0, 1.0, 2.0, 3.0, 3.75, 4.5, 5.25, 6.0]


def test_padding_is_paid_for() -> None:
    curve = cost_curve({1: 1.0, 4: 4.0}, 4, lambda rows: 4 if rows > 1 else 1)
    assert list(curve) == [1.0, 4.0, 4.0, 4.0]


@given(MEASURED)
def test_a_row_costs_about_what_it_does_at_the_cheapest_size(measured: dict[int, float]) -> None:
    smooth = isotonic([measured[rows] for rows in sorted(measured)])
    least = min(cost / rows for rows, cost in zip(sorted(measured), smooth, strict=True))

    assert least * (1 - 1e-9) <= row_cost(measured) <= 1.5 * least * (1 + 1e-9)


def test_one_lucky_size_does_not_decide_what_a_row_costs() -> None:
    assert row_cost({1: 1.0, 2: 2.2, 3: 2.4, 4: 4.0}) == pytest.approx((1.0 + 1.1 + 0.8 + 1.0) / 4)


def test_batches_that_are_cheaper_by_far_decide_alone() -> None:
    assert row_cost({1: 1.0, 64: 1.28}) == pytest.approx(0.02)
