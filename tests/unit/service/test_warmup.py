"""Whether rows are independent is found out by running, and made-up inputs fit any signature."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_file import read_facts
from fitserve_service import warmup
from fitserve_service.session import OperatorError, RunawayError, Session, SessionOptions
from fitserve_service.signature import Signature
from fitserve_service.warmup import batching_problem, looks_batched, made_up_inputs, measure


def opened(model: bytes) -> Session:
    return Session(model, read_facts(model), SessionOptions("cpu"))


def reduced(operator: str, datatype: str) -> bytes:
    """x (B) -> y = x compared with the largest or smallest of the batch."""
    element_type = builders.ELEMENT_TYPES[datatype]
    return builders.model(
        [
            helper.make_node(operator, ["x", "axes"], ["extreme"], keepdims=1),
            helper.make_node("Equal", ["x", "extreme"], ["y"]),
        ],
        [builders.value("x", ("B",), element_type)],
        [builders.value("y", ("B",), TensorProto.BOOL)],
        {"axes": np.array([0], np.int64)},
    )


@pytest.mark.parametrize(
    "model",
    [
        builders.scaled(),
        builders.linear(),
        builders.two_in_two_out(),
        builders.default_input(),
        builders.gather(),
        builders.zipmap_like(),
        builders.identity("BYTES", ("B",)),
        builders.identity("BF16"),
        builders.identity("FP16"),
        builders.identity("BOOL", ("B", "S", None)),
        builders.identity(shape=(None, None)),
        builders.model([helper.make_node("Log", ["x"], ["y"])], [builders.value("x")], [builders.value("y")]),
    ],
)
def test_models_whose_rows_are_independent_are_joined(model: bytes) -> None:
    assert batching_problem(opened(model)) == ""


@pytest.mark.parametrize(
    "model",
    [
        builders.mean_over_batch(),
        builders.cumulative_sum(),
        builders.softmax_over_batch(),
        reduced("ReduceMax", "INT64"),
        reduced("ReduceMin", "INT32"),
        reduced("ReduceMax", "FP32"),
    ],
)
def test_models_that_mix_their_rows_are_not(model: bytes) -> None:
    assert batching_problem(opened(model)) == "a row of output 'y' depends on the other rows of the batch"


def test_words_that_are_compared_within_the_batch_are_not_joined() -> None:
    model = builders.model(
        [
            helper.make_node("Gather", ["x", "first"], ["head"]),
            helper.make_node("StringConcat", ["x", "head"], ["y"]),
        ],
        [builders.value("x", ("B",), TensorProto.STRING)],
        [builders.value("y", ("B",), TensorProto.STRING)],
        {"first": np.array([0], np.int64)},
    )

    assert "depends on the other rows" in batching_problem(opened(model))


def test_an_output_that_counts_something_else_is_seen() -> None:
    model = builders.model(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
        [builders.value("x", ("B", "N"))],
        [builders.value("y", ("N", "B"))],
    )

    assert batching_problem(opened(model)) == "output 'y' does not give one row for each row of the inputs"


@pytest.mark.parametrize("model", [builders.fixed_shape(), builders.identity(shape=()), builders.identity(shape=None)])
def test_without_a_free_first_axis_nothing_is_joined(model: bytes) -> None:
    assert batching_problem(opened(model)) == "not every input and output has a free first axis"


def test_a_model_that_refuses_made_up_values_is_not_known_to_be_independent() -> None:
    session = opened(builders.gather(classes=1))

    assert "did not run on made-up inputs" in batching_problem(session)


def test_free_axes_are_tried_in_sizes_until_the_model_runs() -> None:
    model = builders.model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [builders.value("x", ("B", 1, "H", "W"))],
        [builders.value("y", ("B", 1, "h", "w"))],
        {"w": np.ones((1, 1, 20, 20), np.float32)},
    )

    assert batching_problem(opened(model)) == ""
    first_s, costs = measure(opened(model), [1], budget_s=9)
    assert first_s > 0
    assert costs.expected_s(1, 32 * 32) == first_s


def test_a_tensor_too_large_to_try_is_not_made() -> None:
    session = opened(builders.identity(shape=("B", 1 << 20, 1 << 20)))

    assert "did not run on made-up inputs" in batching_problem(session)
    assert measure(session, [1], budget_s=9)[0] == 0


def test_every_size_is_measured_within_the_time_given() -> None:
    session = opened(builders.scaled())
    first_s, costs = measure(session, [1, 2, 4], budget_s=float("inf"))

    assert first_s == costs.expected_s(1, 2) > 0
    assert 0 < costs.expected_s(4, 2) < 1
    assert set(measure(session, [1, 2, 4], budget_s=0.0)[1]._run_s[2]) == {1}


def test_a_size_that_the_model_refuses_ends_the_measuring() -> None:
    model = builders.model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [builders.value("x", ("B", 2))],
        [builders.value("y", ("B", 2))],
        {"w": np.ones((3, 2), np.float32)},
    )

    first_s, costs = measure(opened(model), [1, 2, 3], budget_s=9)
    assert first_s > 0
    assert set(costs._run_s[2]) == {1}


axes = st.one_of(st.none(), st.sampled_from(["B", "S"]), st.integers(0, 4))
specs = st.builds(
    TensorSpec,
    st.text(max_size=3),
    st.sampled_from(list(NUMPY_DTYPES)),
    st.none() | st.lists(axes, max_size=4).map(tuple),
)


@settings(deadline=None)
@given(st.lists(specs, max_size=3, unique_by=lambda spec: spec.name), st.sampled_from([1, 3]))
def test_made_up_inputs_fit_the_signature_that_they_are_made_for(found: list[TensorSpec], rows: int) -> None:
    """Axes named B come first alone; elsewhere a free axis of any name has the one size tried."""
    found = [
        TensorSpec(
            s.name, s.datatype, s.shape and tuple(a if i == 0 or a != "B" else "S" for i, a in enumerate(s.shape))
        )
        for s in found
        if not s.shape or s.shape[0] != "S"
    ]
    inputs = made_up_inputs(found, rows, 5)

    assert Signature(tuple(found), (), False).check(inputs) == 1
    again = made_up_inputs(found, rows, 5)
    assert all(again[name].array.tolist() == tensor.array.tolist() for name, tensor in inputs.items())


def test_a_model_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_RUN_LIMIT_S", 0.05)
    session = opened(builders.endless())

    with pytest.raises(RunawayError):
        batching_problem(session)
    with pytest.raises(RunawayError):
        measure(session, [1, 2], budget_s=9)


def test_optional_inputs_are_left_out() -> None:
    session = opened(builders.default_input())

    assert list(made_up_inputs(session.inputs, 2, 1)) == ["x"]
    assert looks_batched(session.inputs, session.outputs)


def test_a_model_without_required_inputs_has_no_batch_axis() -> None:
    assert not looks_batched([], [TensorSpec("y", "FP32", ("B",))])
    with pytest.raises(OperatorError, match="too large to try out"):
        made_up_inputs([TensorSpec("x", "FP32", (1 << 40,))], 1, 1)
