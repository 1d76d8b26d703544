"""Whether requests are joined: by proof and trial, or as model.toml says."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from fitserve_contract.joinability.proof import RowProof
from fitserve_contract.onnx_file import read_facts
from fitserve_service.loading import joining_trial
from fitserve_service.loading.joining_trial import claim_problem, joining_problem, settle_joining
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.session import RunawayError, Session, SessionOptions


def opened(model: bytes) -> Session:
    return Session(model, read_facts(model), SessionOptions("cpu"))


def problem_of(model: bytes) -> str:
    return joining_problem(opened(model), model, 256)


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
    assert problem_of(model) == ""


COUPLED = {
    "mean": builders.mean_over_batch(),
    "cumulative": builders.cumulative_sum(),
    "softmax": builders.softmax_over_batch(),
    "largest of INT64": reduced("ReduceMax", "INT64"),
    "smallest of INT32": reduced("ReduceMin", "INT32"),
    "largest of FP32": reduced("ReduceMax", "FP32"),
    "first word": builders.model(
        [
            helper.make_node("Gather", ["x", "first"], ["head"]),
            helper.make_node("StringConcat", ["x", "head"], ["y"]),
        ],
        [builders.value("x", ("B",), TensorProto.STRING)],
        [builders.value("y", ("B",), TensorProto.STRING)],
        {"first": np.array([0], np.int64)},
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_the_proof_names_the_node_that_mixes_rows(name: str) -> None:
    assert "node '" in problem_of(COUPLED[name])


@pytest.mark.parametrize("name", COUPLED)
def test_the_trial_finds_mixed_rows_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining_trial, "prove_rows", lambda _: RowProof(""))
    problem = problem_of(COUPLED[name])
    assert "row" in problem
    assert "output 'y'" in problem


def test_rows_that_are_none_of_the_output_are_found_by_proof_and_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    model = builders.model(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
        [builders.value("x", ("B", "N"))],
        [builders.value("y", ("N", "B"))],
    )
    assert "output 'y'" in problem_of(model)
    monkeypatch.setattr(joining_trial, "prove_rows", lambda _: RowProof(""))
    assert problem_of(model) == "output 'y' does not give one row for each row of the inputs"


@pytest.mark.parametrize(
    "model",
    [builders.fixed_shape(), *(builders.identity(shape=shape) for shape in ((), None, (0, 2)))],
)
def test_without_a_free_first_axis_nothing_is_joined(model: bytes) -> None:
    assert "input 'x'" in problem_of(model)


def test_a_proof_that_cannot_be_tried_out_is_not_relied_on() -> None:
    assert "did not run on made-up inputs" in problem_of(builders.gather(classes=1))
    assert "did not run on made-up inputs" in problem_of(builders.identity(shape=("B", 1 << 20, 1 << 20)))


def test_a_row_that_fits_but_once_into_the_limit_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining_trial, "MAX_ELEMENTS", 3)
    assert "2 elements is too large to be tried out together" in problem_of(builders.scaled())


def test_long_runs_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining_trial, "_LONGEST_RUN_S", 0.0)
    assert "joining would gain nothing" in problem_of(builders.scaled())


def test_a_model_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining_trial, "prove_rows", lambda _: RowProof(""))
    model = builders.endless()
    session = Session(model, read_facts(model), SessionOptions("cpu", run_limit_s=0.05))
    with pytest.raises(RunawayError):
        joining_problem(session, model, 256)


@pytest.mark.parametrize(
    ("model", "values", "size", "problem", "comment"),
    [
        (builders.scaled(), {}, 256, "", "rows are proved independent, and were tried beside hostile ones"),
        (builders.scaled(), {"joinable": False}, 0, "model.toml says so", "model.toml says so"),
        (builders.scaled(), {"max_batch_size": 0}, 0, "model.toml says so", "model.toml says so"),
        (builders.scaled(), {"max_batch_size": 8}, 8, "", "rows are proved independent"),
        (builders.scaled(), {"joinable": True}, 256, "", "model.toml says so; proved"),
        (builders.mean_over_batch(), {}, 0, "node '", "node '"),
        (builders.mean_over_batch(), {"max_batch_size": 8}, 0, "node '", "node '"),
        (builders.mean_over_batch(), {"joinable": True}, 256, "", "model.toml says so; not proved: node '"),
    ],
)
def test_model_toml_forces_either_way_and_bounds(
    model: bytes, values: dict[str, object], size: int, problem: str, comment: str
) -> None:
    overrides = Overrides(values)
    joining = settle_joining(opened(model), model, overrides.apply(ModelConfig()), overrides)
    assert (joining.config.max_batch_size, joining.config.joinable) == (size, size > 0)
    assert bool(joining.problem) == bool(problem)
    assert problem in joining.problem
    assert comment in joining.comment


def test_files_that_a_spot_check_found_out_are_not_joined_again_unless_that_is_accepted() -> None:
    model, found = builders.mean_over_batch(), "a spot check found a row that depends on its neighbours"
    for values, problem in (({}, found), ({"joinable": True}, found), ({"joinable": True, "spot_check_share": 0}, "")):
        overrides = Overrides(values)
        joining = settle_joining(opened(model), model, overrides.apply(ModelConfig()), overrides, found)
        assert joining.problem == problem


def test_a_claim_that_cannot_be_is_told() -> None:
    assert claim_problem(opened(builders.scaled())) == ""
    assert "has no free first axis" in claim_problem(opened(builders.fixed_shape()))
