"""What the client does, call by call: the operations are driven by hand, without a channel."""

import dataclasses
from typing import Any

import grpc
import numpy as np
import pytest

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_client.connection import Connection, ConnectionOptions, Drive, more_telling
from fitserve_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FitserveError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from fitserve_client.models import Selector
from fitserve_client.operations import Operation, Operations

Answers = dict[str, list[Any]]


def _run(operation: Operation[Any], answers: Answers) -> tuple[Any, list[Any]]:
    """Answers each call by its method from a list, raising what is an error; gives the result and the requests."""
    requests, drive = [], Drive(operation)
    while drive.call is not None:
        requests.append(drive.call.request)
        answer = answers[drive.call.path.rpartition("/")[2]].pop(0)
        if isinstance(answer, FitserveError):
            drive.fail(answer)
        else:
            drive.answer(answer)
    return drive.result, requests


def _version(number: int, datatype: str = "FP32", state: int = control_pb2.STATE_READY, reason: str = "") -> Any:
    return control_pb2.GetModelVersionResponse(
        model_name="m",
        version=control_pb2.ModelVersion(version=number, state=state, max_batch_size=4, reason=reason),
        inputs=[control_pb2.TensorSpec(name="x", datatype=datatype, shape=[-1])],
    )


def _answer(number: int) -> Any:
    output = tensor_pb2.Tensor(name="y", datatype="FP32", shape=[1], content=np.float32(2).tobytes())
    return inference_pb2.PredictResponse(model_name="m", model_version=number, outputs=[output])


def test_the_signature_is_asked_for_once():
    operations = Operations()
    first, requests = _run(
        operations.predict(Selector("m"), [1.0], ()), {"GetModelVersion": [_version(1)], "Predict": [_answer(1)]}
    )
    assert (first.version, first.array.tolist(), len(requests)) == (1, [2.0], 2)
    _, requests = _run(operations.predict(Selector("m"), [1.0], ("y",)), {"Predict": [_answer(1)]})
    assert [list(request.outputs) for request in requests] == [["y"]]


def test_another_version_that_answers_has_the_signature_asked_for_anew():
    operations = Operations()
    answers = {"GetModelVersion": [_version(1), _version(2)], "Predict": [_answer(2), _answer(2)]}
    _run(operations.predict(Selector("m"), [1.0], ()), answers)
    _run(operations.predict(Selector("m"), [1.0], ()), answers)
    assert answers == {"GetModelVersion": [], "Predict": []}


def test_a_signature_that_changed_is_learned_and_the_call_made_again():
    operations = Operations()
    _run(operations.predict(Selector("m"), [1.0], ()), {"GetModelVersion": [_version(1)], "Predict": [_answer(1)]})
    refused = InvalidArgumentError("input 'x': expected INT64, got FP32")
    prediction, requests = _run(
        operations.predict(Selector("m"), [1], ()),
        {"GetModelVersion": [_version(2, "INT64")], "Predict": [refused, _answer(2)]},
    )
    assert prediction.version == 2
    assert [r.inputs[0].datatype for r in requests if isinstance(r, inference_pb2.PredictRequest)] == ["FP32", "INT64"]


def test_an_input_that_never_fitted_is_refused_once_the_signature_is_known_to_stand():
    operations = Operations()
    _run(operations.predict(Selector("m"), [1.0], ()), {"GetModelVersion": [_version(1)], "Predict": [_answer(1)]})
    refused = InvalidArgumentError("input 'x': expected shape (B,), got (1, 1)")
    with pytest.raises(InvalidArgumentError, match=r"got \(1, 1\)"):
        _run(operations.predict(Selector("m"), [[1.0]], ()), {"GetModelVersion": [_version(1)], "Predict": [refused]})


def test_a_fresh_signature_is_not_asked_for_twice():
    with pytest.raises(InvalidArgumentError, match="expected FP32"):
        _run(Operations().predict(Selector("m"), ["a"], ()), {"GetModelVersion": [_version(1)]})


@pytest.mark.parametrize(
    ("state", "expected", "text"),
    [
        (
            control_pb2.STATE_LOADING,
            UnavailableError,
            "got LOADING; wait for it with: fitserve-client wait m --model-version 1",
        ),
        (
            control_pb2.STATE_UNLOADED,
            UnavailableError,
            "state READY, got UNLOADED; keep it loaded with a label: fitserve-client label m LABEL 1",
        ),
        (control_pb2.STATE_FAILED, FailedPreconditionError, "version 1: expected state READY, got FAILED: no such op"),
    ],
)
def test_a_version_that_is_not_ready_is_not_called(state, expected, text):
    answers = {"GetModelVersion": [_version(1, state=state, reason="no such op")]}
    with pytest.raises(expected, match=text):
        _run(Operations().predict(Selector("m", 1), [1.0], ()), answers)


def _sums(count: int) -> Any:
    loss = tensor_pb2.ExactSum(units="5", fraction_bits=40)
    sums = inference_pb2.ClassificationSums(example_count=count, correct_count=1, loss=loss)
    return inference_pb2.EvaluateResponse(model_name="m", model_version=7, classification=sums)


def test_an_evaluation_names_one_version_in_every_batch():
    plan, _ = _run(
        Operations().plan_evaluation(Selector("m", label="canary"), [1.0, 2, 3, 4, 5], [0, 0, 0, 0, 1], 2),
        {"GetModelVersion": [_version(7)]},
    )
    assert plan.batches == [slice(0, 2), slice(2, 4), slice(4, 5)]
    for batch in plan.batches:
        sums, (request,) = _run(plan.score(batch), {"Evaluate": [_sums(batch.stop - batch.start)]})
        assert (request.model.version, request.model.label) == (7, "")
        assert np.frombuffer(request.inputs[0].content, np.float32).tolist() == [1, 2, 3, 4, 5][batch]
        assert sums.example_count == batch.stop - batch.start


def _plan(selector: Selector, inputs: Any, labels: Any, batch_size: int | None = None) -> Any:
    operation = Operations().plan_evaluation(selector, inputs, labels, batch_size)
    return _run(operation, {"GetModelVersion": [_version(7)]})[0]


@pytest.mark.parametrize(
    ("inputs", "labels", "batch_size", "text"),
    [
        ([1.0, 2.0], [0], None, "labels: expected 2, as many as input 'x', got 1"),
        ([], np.zeros(0, int), None, "labels: expected at least 1 example, got 0"),
        (1.0, [0], None, "input 'x': expected an axis of examples, got a scalar"),
        ([1.0], 0, None, "labels: expected an axis of examples, got a scalar"),
        ([1.0], [0], 0, "batch_size: expected at least 1, got 0"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused_before_any_batch(inputs, labels, batch_size, text):
    with pytest.raises(InvalidArgumentError, match=text):
        _plan(Selector("m"), inputs, labels, batch_size)


def test_batches_are_as_the_model_takes_them():
    assert len(_plan(Selector("m"), np.zeros(9), np.zeros(9, int)).batches) == 3


GONE = UnavailableError("version 7 is unloading", reason="NOT_READY")


def test_an_evaluation_begins_anew_when_a_swap_took_its_version_twice_at_most():
    plan = _plan(Selector("m"), [1.0], [0])
    for error in (GONE, NotFoundError("no version 7")):
        plan.check_restart(error, 0)
        plan.check_restart(error, 1)
        with pytest.raises(type(error)):
            plan.check_restart(error, 2)


@pytest.mark.parametrize("error", [UnavailableError("no server"), InvalidArgumentError("labels: 11")])
def test_an_evaluation_that_fails_otherwise_does_not_begin_anew(error):
    plan = _plan(Selector("m"), [1.0], [0])
    with pytest.raises(type(error)):
        plan.check_restart(error, 0)


def test_an_evaluation_of_a_named_version_does_not_take_another():
    plan = _plan(Selector("m", 7), [1.0], [0])
    with pytest.raises(UnavailableError):
        plan.check_restart(GONE, 0)


def _model(*versions: tuple[int, int]) -> Any:
    listed = [control_pb2.ModelVersion(version=number, state=state, reason="bad") for number, state in versions]
    return control_pb2.GetModelResponse(model=control_pb2.Model(name="m", versions=listed))


READY, LOADING, FAILED = control_pb2.STATE_READY, control_pb2.STATE_LOADING, control_pb2.STATE_FAILED


@pytest.mark.parametrize(
    ("answer", "version", "expected"),
    [
        (_model((1, READY), (2, LOADING)), None, None),
        (_model((1, READY), (2, FAILED)), None, None),
        (_model((1, READY), (2, LOADING)), 2, "model 'm' version 2: expected state READY, got LOADING"),
        (_model((1, FAILED), (2, LOADING)), None, "model 'm' version 2: expected state READY, got LOADING"),
        (_model((1, READY)), 2, "model 'm': expected version 2, found none"),
        (_model(), None, "model 'm': expected version of any number, found none"),
        (NotFoundError("no model"), None, "no model"),
        (UnavailableError("no server"), None, "no server"),
        (DeadlineExceededError("too late"), None, "too late"),
    ],
)
def test_waiting_looks_at_the_states(answer, version, expected):
    obstacle, _ = _run(Operations().obstacle("m", version), {"GetModel": [answer]})
    assert (obstacle and str(obstacle)) == expected


def test_waiting_for_what_failed_ends_with_the_reason():
    with pytest.raises(FailedPreconditionError, match="version 2: expected state READY, got FAILED: bad"):
        _run(Operations().obstacle("m", 2), {"GetModel": [_model((1, READY), (2, FAILED))]})


def test_waiting_for_the_server_asks_for_its_models():
    assert _run(Operations().obstacle(None, None), {"ListModels": [control_pb2.ListModelsResponse()]})[0] is None


def test_a_look_that_ran_out_of_time_does_not_hide_the_obstacle_before_it():
    absent, late = UnavailableError("no server"), DeadlineExceededError("too late")
    assert more_telling(None, late) is late
    assert more_telling(absent, late) is absent
    assert more_telling(late, absent) is absent


def test_known_signatures_are_bounded():
    operations = Operations()
    for number in range(2000):
        _run(operations.details(Selector("m", number)), {"GetModelVersion": [_version(number)]})
    assert len(operations._known) <= 1024


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_timeout_is_above_0(timeout_s):
    with pytest.raises(InvalidArgumentError, match="timeout_s: expected more than 0"):
        Connection(timeout_s=timeout_s)


def test_a_client_takes_every_field_of_a_connection_by_name():
    fields = [field.name for field in dataclasses.fields(Connection) if field.init]
    assert fields == ["target", *ConnectionOptions.__annotations__]


def test_own_channel_options_give_way():
    options = dict(Connection(max_message_bytes=5, options=[("grpc.max_send_message_length", 7)]).channel_options())
    assert (options["grpc.max_send_message_length"], options["grpc.max_receive_message_length"]) == (7, 5)


class _Failed:
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "it broke"

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "server here:1: expected an answer, got none: it broke"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "server here:1: expected an answer before the deadline, got none"),
        (grpc.StatusCode.INTERNAL, "it broke"),
    ],
)
def test_errors_of_the_connection_name_the_server(code: grpc.StatusCode, text: str):
    assert str(Connection("here:1").error(_Failed(code))) == text
