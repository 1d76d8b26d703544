"""Percentiles, bootstrap intervals, stability and ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fitserve_benchmarks.statistics import (
    Interval,
    Times,
    bootstrap_median,
    bootstrap_quantile,
    is_unstable,
    median_interval,
    percentile,
    ratio,
    samples_for_percentile,
    sign_test_rank,
    windows,
)

TIMES = st.floats(min_value=1e-6, max_value=10.0)


@pytest.mark.parametrize(("error", "count"), [(0.005, 1_521), (0.002, 9_508)])
def test_p99_needs_the_published_number_of_samples(error: float, count: int) -> None:
    assert samples_for_percentile(0.99, error) == count


@pytest.mark.parametrize(("fraction", "error"), [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, 1.0)])
def test_a_percentile_outside_its_range_is_refused(fraction: float, error: float) -> None:
    with pytest.raises(ValueError, match=r"expected a fraction and an error in \(0, 1\)"):
        samples_for_percentile(fraction, error)


def test_the_promised_rank_error_holds_in_95_of_100_draws() -> None:
    generator, count = np.random.default_rng(0), samples_for_percentile(0.99)
    draws = np.quantile(generator.random((400, count)), 0.99, axis=1)  # of uniform values, a quantile is its rank
    within = np.mean(np.abs(draws - 0.99) <= 0.005)
    assert 0.92 <= within <= 0.98


def test_a_percentile_is_left_out_one_sample_below_what_it_needs() -> None:
    values = np.linspace(1.0, 2.0, 1_521)
    assert percentile(values[1:], 0.99) is None
    assert percentile(values, 0.99) == pytest.approx(1.99)


@given(arrays(np.float64, st.integers(1, 40), elements=TIMES))
def test_an_interval_holds_its_estimate_and_stays_within_the_values(values: np.ndarray) -> None:
    interval = bootstrap_median(values)
    assert values.min() <= interval.low <= interval.estimate <= interval.high <= values.max()


@given(arrays(np.float64, st.integers(1, 40), elements=TIMES), st.integers(-8, 8))
def test_an_interval_scales_with_its_unit(values: np.ndarray, power: int) -> None:
    one, other = bootstrap_median(values), bootstrap_median(values * 2.0**power)
    assert other.low == pytest.approx(one.low * 2.0**power)
    assert other.high == pytest.approx(one.high * 2.0**power)


def test_an_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = [
        interval.low <= 1.0 <= interval.high
        for interval in (bootstrap_median(generator.lognormal(0.0, 0.3, 21)) for _ in range(300))
    ]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_no_values_have_no_median() -> None:
    with pytest.raises(ValueError, match="expected at least 1 value, got none"):
        bootstrap_median(np.array([]))


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([1.0, 1.0], True),
        ([1.0, 1.0, 1.0], False),
        ([9.0, 1.0, 1.05, 1.1], False),
        ([1.0, 1.0, 1.0, 1.2], True),
        ([1.0, 1.111, 1.0], True),
    ],
)
def test_only_the_last_three_windows_decide_on_stability(medians: list[float], expected: bool) -> None:
    assert is_unstable(medians) is expected


@given(arrays(np.float64, st.integers(1, 40), elements=TIMES), st.integers(1, 12))
def test_windows_keep_the_order_and_lose_nothing(medians: np.ndarray, count: int) -> None:
    joined = windows(np.sort(medians), count)
    assert len(joined) == min(count, len(medians))
    assert (np.diff(joined) >= 0).all()


@given(arrays(np.float64, 7, elements=TIMES), st.integers(1, 16))
def test_a_contestant_n_times_as_fast_in_every_trial_has_ratio_n(medians: np.ndarray, factor: int) -> None:
    found = ratio(medians * factor, medians)
    assert (found.low, found.estimate, found.high) == pytest.approx((factor, factor, factor))


def test_drift_that_both_sides_share_leaves_the_ratio_alone() -> None:
    drift = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    found = ratio(3.0 * drift, drift)
    assert found.low == found.high == pytest.approx(3.0)


def test_trials_that_did_not_run_side_by_side_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="expected 3 trials as the baseline has, got 2"):
        ratio(np.ones(3), np.ones(2))


@given(arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(1e-6, 1.0)))
def test_a_percentile_lies_in_its_interval_of_trials_and_within_the_calls(times_s: Times) -> None:
    interval = bootstrap_quantile(times_s, 0.9)
    assert interval.estimate == pytest.approx(float(np.quantile(times_s, 0.9)))
    assert times_s.min() <= interval.low <= interval.high <= times_s.max()
    assert bootstrap_quantile(times_s, 0.9) == interval


def test_the_interval_of_a_percentile_is_as_wide_as_the_trials_differ() -> None:
    calls = np.linspace(1.0, 2.0, 50)
    same, apart = np.stack([calls] * 4), np.stack([calls, calls, 2 * calls, 2 * calls])
    assert bootstrap_quantile(same, 0.99).low == bootstrap_quantile(same, 0.99).high
    assert bootstrap_quantile(apart, 0.99).low < 0.75 * bootstrap_quantile(apart, 0.99).high
    with pytest.raises(ValueError, match="expected at least 1 call"):
        bootstrap_quantile(np.empty((3, 0)), 0.9)


@pytest.mark.parametrize(
    ("count", "rank"),
    [(0, 0), (1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (17, 5), (20, 6), (25, 8), (30, 10), (100, 40)],
)
def test_the_sign_tests_rank_is_one_above_its_published_critical_value(count: int, rank: int) -> None:
    assert sign_test_rank(count) == rank


def test_the_interval_of_a_median_lies_between_values_in_order() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 16.0))
    assert median_interval(values) == Interval(8.0, 4.0, 12.0)
    assert median_interval(values[:6]) == Interval(float(np.median(values[:6])), values[:6].min(), values[:6].max())
    assert median_interval(values[:5]) is None


def test_the_interval_of_a_median_covers_it_as_often_as_is_computed() -> None:
    """15 values: 1 - 2 P(Binomial(15, 1/2) < 4) = 0.9648, whatever the distribution; here a skewed one."""
    draws = np.random.default_rng(1).exponential(size=(4_000, 15))
    intervals = [median_interval(values) for values in draws]
    covered = np.mean([found is not None and found.low <= np.log(2) <= found.high for found in intervals])
    assert covered == pytest.approx(0.9648, abs=4 * (0.9648 * 0.0352 / 4_000) ** 0.5)
