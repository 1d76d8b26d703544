"""Made-up inputs fit any signature, and what a run costs is measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_file import read_facts
from fitserve_service import warmup
from fitserve_service.runtime.run_limit import DEFAULT_RUN_LIMIT_S, RunLimit
from fitserve_service.session import OperatorError, RunawayError, RunSwitch, Session, SessionOptions
from fitserve_service.signature import Signature, Tensor
from fitserve_service.warmup import answers_alike, made_up_inputs, measure


def opened(model: bytes, run_limit_s: float = DEFAULT_RUN_LIMIT_S) -> Session:
    return Session(model, read_facts(model), SessionOptions("cpu", run_limit_s=run_limit_s))


def test_free_axes_are_tried_in_sizes_until_the_model_runs() -> None:
    model = builders.model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [builders.value("x", ("B", 1, "H", "W"))],
        [builders.value("y", ("B", 1, "h", "w"))],
        {"w": np.ones((1, 1, 20, 20), np.float32)},
    )

    first_s, costs = measure(opened(model), [1], budget_s=9)
    assert first_s > 0
    assert costs.expected_s(1, 32 * 32) == first_s


def test_a_tensor_too_large_to_try_is_not_made() -> None:
    session = opened(builders.identity(shape=("B", 1 << 20, 1 << 20)))

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


def test_a_model_that_never_ends_is_ended_with_the_option_that_allows_more() -> None:
    session = opened(builders.endless(), run_limit_s=0.05)

    with pytest.raises(RunawayError, match=r"a row within 0\.05 s .* does it loop for ever\? .*--canary-limit-s 1$"):
        measure(session, [1, 2], budget_s=9)


class Counting(Session):
    """Counts its runs by their rows."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model, read_facts(model), SessionOptions("cpu"))
        self.rows: list[int] = []

    def run(
        self, inputs: Mapping[str, Tensor], output_names: Sequence[str], limit: RunLimit | RunSwitch | None = None
    ) -> dict[str, Tensor]:
        self.rows.append(next(iter(inputs.values())).array.shape[0])
        return super().run(inputs, output_names, limit)


def test_a_slow_run_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_SLOW_S", 0.0)
    session = Counting(builders.scaled())
    first_s, costs = measure(session, [1, 2], budget_s=float("inf"))

    assert session.rows == [1, 2]
    assert first_s == costs.expected_s(1, 2) > 0
    measure(session, [1], budget_s=float("inf"))
    assert session.rows == [1, 2]


def test_a_short_run_is_repeated_and_its_first_is_not_counted() -> None:
    session = Counting(builders.scaled())
    measure(session, [1, 2], budget_s=float("inf"))

    assert session.rows == [1, 1, 1, 1, 2, 2, 2]


def test_the_time_of_a_slow_run_counts_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_SLOW_S", 0.0)
    session = Counting(builders.scaled())
    measure(session, [1, 2, 4], budget_s=0.0)

    assert session.rows == [1]


def test_slow_answers_are_compared_by_one_run_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_SLOW_S", 0.0)
    first, second = Counting(builders.scaled()), Counting(builders.scaled(3.0))

    assert not answers_alike(first, second)
    assert (first.rows, second.rows) == ([1], [1])


def test_optional_inputs_are_left_out() -> None:
    session = opened(builders.default_input())

    assert list(made_up_inputs(session.inputs, 2, 1)) == ["x"]


def test_an_input_too_large_to_try_is_refused() -> None:
    with pytest.raises(OperatorError, match="too large to try out"):
        made_up_inputs([TensorSpec("x", "FP32", (1 << 40,))], 1, 1)
