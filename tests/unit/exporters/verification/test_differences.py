"""Figures of one output."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fitserve_exporters.candidate.candidate import Array, Tolerance
from fitserve_exporters.verification.differences import Differences
from fitserve_exporters.verification.differences import differences as differences_within
from fitserve_exporters.verification.tolerance import Bounds, bounds_of

F32 = np.float32


def differences(ort: Array, eager: Array, exact: Array, tolerance: Tolerance) -> Differences:
    return differences_within(ort, eager, exact, bounds_of(eager, exact, tolerance))


def test_figures_of_a_small_case() -> None:
    ort, eager = np.array([1.0, 2.0, 4.5], F32), np.array([1.0, 2.5, 4.0], F32)
    figures = differences(ort, eager, np.array([1.0, 2.25, 4.125]), Tolerance(factor=2.0, atol=1e-5, rtol=1e-5))
    assert figures.max_abs_diff == 0.5
    assert figures.mean_abs_diff == pytest.approx(1 / 3)
    assert figures.max_rel_diff == pytest.approx(0.2)
    assert figures.ort_max_error == 0.375
    assert figures.torch_max_error == 0.25
    assert figures.largest == 4.125
    assert figures.tolerance == 0.5
    assert figures.is_within


def test_output_over_its_tolerance_is_not_within() -> None:
    exact = np.array([1.0, 2.0])
    figures = differences(np.array([1.0, 2.0001], F32), exact.astype(F32), exact, Tolerance())
    assert not figures.is_within


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, 3.5e38 / 2, 1e-45])
def test_neighbouring_floats_are_one_ulp_apart(value: float) -> None:
    left = np.array([value], F32)
    right = np.nextafter(left, F32(np.inf))
    assert differences(left, right, left.astype(float), Tolerance()).max_ulps == 1


def test_zeros_of_either_sign_are_the_same() -> None:
    figures = differences(np.array([-0.0], F32), np.array([0.0], F32), np.zeros(1), Tolerance())
    assert (figures.max_ulps, figures.max_abs_diff) == (0, 0.0)


def test_ulps_count_across_zero_and_over_all_of_float64() -> None:
    least = np.nextafter(F32(0), F32(1))
    assert differences(np.array([-least]), np.array([least]), np.zeros(1), Tolerance()).max_ulps == 2
    top = np.finfo(np.float64).max
    every = Bounds(np.zeros(1), np.zeros(1, bool), np.zeros(1, np.int64))
    wide = differences_within(np.array([-top]), np.array([top]), np.zeros(1), every)
    assert wide.max_ulps == 2 * int(np.array(top).view(np.int64))


def test_same_non_finite_values_agree_and_others_do_not() -> None:
    same = np.array([np.nan, np.inf, -np.inf, 1.0], F32)
    assert differences(same, same, same.astype(float), Tolerance()).is_within
    other = np.array([0.0, -np.inf, -np.inf, np.nan], F32)
    figures = differences(other, same, same.astype(float), Tolerance())
    assert figures.sentinel_mismatch_count == 3
    assert not figures.is_within
    assert all(math.isfinite(value) for value in figures.to_json().values())


def test_integers_differ_or_not() -> None:
    left, right = np.array([1, 2, 3]), np.array([1, 2, 4])
    assert differences(left, right, right.astype(float), Tolerance()).max_ulps == 1
    assert not differences(left, right, right.astype(float), Tolerance()).is_within


def test_empty_output_has_figures() -> None:
    empty = np.zeros((0, 3), F32)
    assert differences(empty, empty, empty.astype(float), Tolerance()).is_within


def test_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(2,\), got \(2, 1\)"):
        differences(np.zeros((2, 1), F32), np.zeros(2, F32), np.zeros(2), Tolerance())


@given(hnp.arrays(F32, st.integers(0, 20), elements=st.floats(width=32)), st.data())
def test_figures_are_finite_symmetric_and_zero_for_the_same(values: np.ndarray, data: st.DataObject) -> None:
    others = data.draw(hnp.arrays(F32, len(values), elements=st.floats(width=32)))
    ordinary = Bounds(np.zeros(len(values)), np.zeros(len(values), bool), np.zeros(len(values), np.int64))
    forth = differences_within(values, others, others.astype(float), ordinary)
    back = differences_within(others, values, values.astype(float), ordinary)
    assert (forth.max_abs_diff, forth.max_ulps) == (back.max_abs_diff, back.max_ulps)
    assert forth.sentinel_mismatch_count == back.sentinel_mismatch_count
    for figures in (forth, differences(values, others, others.astype(float), Tolerance())):
        assert all(math.isfinite(value) for value in figures.to_json().values())
    assert differences(values, values, values.astype(float), Tolerance()).is_within
