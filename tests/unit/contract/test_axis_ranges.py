"""Ranges of free axes: written, read back, and what they refuse."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.axis_ranges import AxisRange
from fitserve_contract.manifest import ManifestError, TensorSpec

SIZES = st.integers(0, 2**40)


@st.composite
def ranges(draw: st.DrawFn) -> AxisRange:
    multiple_of = draw(st.integers(1, 64))
    maximum = draw(st.none() | SIZES)
    remainder = draw(st.integers(0, multiple_of - 1))
    same_as = draw(st.none() | st.tuples(st.text(), st.integers(0, 5)))
    offset = draw(st.integers(-9, 9)) if same_as else 0
    return AxisRange(draw(st.integers(0, 3)), draw(SIZES), maximum, multiple_of, remainder, same_as, offset)


@given(ranges())
def test_range_is_read_as_it_was_written(one: AxisRange) -> None:
    assert AxisRange.from_json(json.loads(json.dumps(one.to_json())), "range") == one


@given(ranges(), SIZES)
def test_size_is_refused_where_a_bound_does_not_hold(one: AxisRange, size: int) -> None:
    is_within = one.minimum <= size and (one.maximum is None or size <= one.maximum)
    is_within = is_within and size % one.multiple_of == one.remainder
    problem = one.problem(size)
    assert bool(problem) is not is_within
    assert not problem or str(size) in problem


@pytest.mark.parametrize(
    ("size", "problem"),
    [(1, "expected at least 8, got 1"), (99, "expected at most 64, got 99"), (12, "a multiple of 8, got 12"), (16, "")],
)
def test_problem_names_the_bound_and_the_size(size: int, problem: str) -> None:
    assert AxisRange(1, 8, 64, 8).problem(size).endswith(problem)


def test_range_is_written_for_people() -> None:
    assert AxisRange(1, 2, 300, 8).text("n") == "n at least 2, at most 300, a multiple of 8"
    assert AxisRange(1, 1, None, 2, 1).text("n") == "n a multiple of 2 and 1 more"
    assert AxisRange(1, 1, None, same_as=("x", 2), offset=-1).text("n") == "n as axis 2 of 'x' - 1"
    assert AxisRange(1, 1).text("n") == ""


def test_tensor_keeps_its_ranges_and_older_manifests_have_none() -> None:
    spec = TensorSpec("x", "FP32", ("batch", "n"), ranges=(AxisRange(1, 2, 300),))
    assert TensorSpec.from_json(json.loads(json.dumps(spec.to_json())), "spec") == spec
    assert "ranges" not in TensorSpec("x", "FP32", ("batch", "n")).to_json()


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        {"axis": "1", "minimum": 1},
        {"axis": 2, "minimum": 1},
        {"axis": 1, "minimum": -1},
        {"axis": 1, "minimum": 1, "maximum": True},
        {"axis": 1, "minimum": 1, "multiple_of": 0},
        {"axis": 1, "minimum": 1, "multiple_of": 2, "remainder": 2},
        {"axis": 1, "minimum": 1, "same_as": ["x", 1]},
        {"axis": 1, "minimum": 1, "same_as": {"input": "x", "axis": 1, "offset": 0.5}},
    ],
)
def test_wrong_range_is_refused_by_its_place(wrong: Any) -> None:
    spec = {"name": "x", "datatype": "FP32", "shape": ["batch", "n"], "ranges": [wrong]}
    with pytest.raises(ManifestError, match=r"spec\.ranges\[0\]"):
        TensorSpec.from_json(spec, "spec")
