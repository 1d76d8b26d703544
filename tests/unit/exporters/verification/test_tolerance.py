"""The bound of each element: its own rounding and the scale of its own feature."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_exporters.candidate.candidate import Array, Tolerance
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.tolerance import bounds_of, by_feature, features_of

F32 = np.float32


def is_within(ort: Array, eager: Array, exact: Array | None = None) -> bool:
    wide = eager.astype(np.float64) if exact is None else exact
    return differences(ort, eager, wide, bounds_of(eager, wide, Tolerance())).is_within


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(F32)


@pytest.mark.parametrize(
    ("shape", "feature_shape"),
    [((5,), (1,)), ((5, 3), (1, 3)), ((5, 4, 3), (1, 1, 3)), ((5, 3, 4, 6), (1, 3, 1, 1))],
)
@pytest.mark.parametrize("faulty", [0, -1])
def test_small_feature_is_judged_by_its_own_scale(
    shape: tuple[int, ...], feature_shape: tuple[int, ...], faulty: int
) -> None:
    scales = np.logspace(-12, 6, int(np.prod(feature_shape))).reshape(feature_shape).astype(F32)
    eager = normal(*shape) * scales
    assert is_within(eager * F32(1 + 2e-6), eager)
    wrong = by_feature(eager.copy()).copy()
    wrong[:, faulty] *= F32(1.001)
    ort = wrong if len(shape) < 4 else np.moveaxis(wrong.reshape(5, 4, 6, 3), -1, 1)
    assert not is_within(ort.reshape(shape), eager)


@given(st.integers(0, 3), st.floats(1e-20, 1e20), st.integers(0, 2**32 - 1))
def test_bounds_follow_the_scale_of_a_feature(feature: int, factor: float, seed: int) -> None:
    exact = np.random.default_rng(seed).standard_normal((30, 4))
    exact = np.where(np.abs(exact) < 1e-3, 1e-3, exact)
    scaled = exact.copy()
    scaled[:, feature] *= factor
    before, after = (bounds_of(one.astype(F32), one.astype(F32).astype(float), Tolerance()) for one in (exact, scaled))
    chosen = before.feature == feature
    if not after.is_sentinel.any():
        np.testing.assert_allclose(after.allowed[chosen], before.allowed[chosen] * factor, rtol=1e-4)
        np.testing.assert_array_equal(after.allowed[~chosen], before.allowed[~chosen])


MASKS = [-1e9, -1e4, 1e30, -65504.0, -(2.0**32), float(np.finfo(F32).min), float(np.finfo(F32).max), -9e15]


@pytest.mark.parametrize("mask", [*MASKS, np.inf, -np.inf])
def test_masks_take_no_part_in_the_scale_and_are_held_to_ulps(mask: float) -> None:
    eager = normal(40, 3)
    eager[::2, 1] = mask
    eager[:, 2] = mask
    assert is_within(eager, eager)
    wrong = eager.copy()
    wrong[1, 1] *= F32(1.001)
    assert not is_within(wrong, eager)
    for steps, expected in ((4, True), (5, False)):
        if not np.isfinite(mask):
            break
        near = eager.copy()
        for _ in range(steps):
            near[0, 1] = np.nextafter(near[0, 1], F32(0))
        assert is_within(near, eager) is expected
    unmasked = eager.copy()
    unmasked[0, 2] = 0.0
    assert not is_within(unmasked, eager)


def test_masks_of_float64_are_compared_with_those_of_torch() -> None:
    eager = normal(4, 3)
    eager[:, 0] = np.finfo(F32).min
    exact = eager.astype(np.float64)
    exact[:, 0] = np.finfo(np.float64).min
    assert is_within(eager, eager, exact)


def test_round_numbers_of_a_large_feature_are_no_masks() -> None:
    eager = np.array([[20_000.0], [17_123.0], [31_456.0], [10_000.0]], F32)
    assert not bounds_of(eager, eager.astype(float), Tolerance()).is_sentinel.any()
    assert is_within(eager * F32(1 + 3e-6), eager)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, bool, object])
def test_integers_booleans_and_text_are_exact(dtype: type) -> None:
    eager = np.array(["a", "b"], object) if dtype is object else np.array([2**40, 1]).astype(dtype)
    exact = np.zeros(2) if dtype is object else eager.astype(float)
    wrong = eager.copy()
    wrong[1] = "c" if dtype is object else not eager[1]
    assert is_within(eager, eager, exact)
    assert not is_within(wrong, eager, exact)


def test_integers_above_float64_are_told_apart() -> None:
    eager = np.array([2**60, 5])
    assert not is_within(np.array([2**60 + 1, 5]), eager)


def test_integers_of_a_variant_that_rounds_are_held_to_its_measured_error() -> None:
    eager = np.array([4, 5])
    measured = replace(Tolerance(), atol=1.0, is_measured=True)
    assert differences(np.array([5, 5]), eager, eager.astype(float), bounds_of(eager, eager, measured)).is_within


def test_element_where_torch_itself_is_off_is_allowed_as_much_again() -> None:
    eager = np.ones((200, 1), F32)
    exact = eager.astype(float)
    exact[3] = 2.0
    ort = eager.copy()
    assert is_within(ort, eager, exact)
    ort[3] = 4.0
    assert is_within(ort, eager, exact)
    ort[3], ort[4] = 1.0, 2.0
    assert not is_within(ort, eager, exact), "one odd element loosens no other"


def test_features_are_of_all_batches_whatever_their_sizes() -> None:
    one, other = np.full((3, 2), 2.0), np.full((1, 4), 6.0)
    features = features_of([(one.astype(F32), one), (other.astype(F32), other)])
    np.testing.assert_allclose(features.scale, [np.sqrt(12.0), np.sqrt(12.0), 6.0, 6.0])
