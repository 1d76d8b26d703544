"""Comparing rows at one size and position: what counts as the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.joinability.rows import (
    beside_copies,
    is_identical,
    row_difference,
    rows_of,
    size_difference,
)


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 5))
def test_a_batch_of_copies_has_the_request_at_its_position(count: int, before: int, behind: int) -> None:
    rows = {"x": np.arange(count * 3).reshape(count, 3), "t": np.array([b"%d" % k for k in range(count)], object)}
    size = before + count + behind
    batch = beside_copies(rows, size, before)
    for name, array in rows.items():
        assert len(batch[name]) == size
        assert (rows_of(batch, before, count)[name] == array).all()
        own = {row.tobytes() if name == "x" else row for row in array}
        assert {row.tobytes() if name == "x" else row for row in batch[name]} <= own


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ([1.0, np.nan], [1.0, -np.nan], True),
        ([1.0, np.nan], [np.nan, 1.0], False),
        ([0.0], [-0.0], False),
        ([np.inf], [np.inf], True),
        ([1.0], [np.nextafter(1.0, 2.0)], False),
    ],
)
def test_answers_agree_in_every_bit_but_for_the_kind_of_nan(
    one: list[float], other: list[float], is_same: bool
) -> None:
    first, second = np.array(one), np.array(other)
    assert is_identical(first, second) == is_same
    assert (row_difference({"y": first}, {"y": second}) == "") == is_same


def test_arrays_of_other_dtypes_or_shapes_are_not_identical() -> None:
    assert not is_identical(np.zeros(2, np.float32), np.zeros(2, np.int32))
    assert not is_identical(np.zeros((1, 2)), np.zeros(2))


def test_a_difference_names_the_output_and_its_size() -> None:
    expected, found = {"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 2.5])}
    assert row_difference(expected, found) == "output 'y': largest difference 0.5"
    texts = {"t": np.array([b"a", b"b"], object)}, {"t": np.array([b"a", b"c"], object)}
    assert row_difference(*texts) == "output 't': 1 of 2 elements differ"
    shapes = {"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}
    assert row_difference(*shapes) == "output 'y': expected shape (1, 2), got (1, 3)"


def test_rounding_at_another_size_is_no_difference_and_a_division_by_the_size_is() -> None:
    alone = {"y": np.linspace(-1, 1, 8, dtype=np.float32)}
    assert size_difference(alone, {"y": alone["y"] * np.float32(1 + 1e-6)}) == ""
    assert "largest difference" in size_difference(alone, {"y": alone["y"] / 3})
    assert "1 of 2 elements differ" not in size_difference({"y": np.array([1, 2])}, {"y": np.array([1, 2])})
    assert size_difference({"y": np.array([1, 2])}, {"y": np.array([1, 3])})
