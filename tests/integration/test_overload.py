"""A real server under ten times what it can do, for a few seconds: nothing wrong, nothing left without an answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_benchmarks.overload import OverloadPlan, run_overload
from fitserve_benchmarks.overload_model import PREDICT, WIDTH, expected, is_right, model_bytes, requests
from fitserve_benchmarks.overload_source import OK, RESOURCE_EXHAUSTED, WRONG, Phase, SourcePlan, put_source


def answered(*contents: bytes) -> bytes:
    """A PredictResponse with an output for each content."""
    outputs = [tensor_pb2.Tensor(name="y", content=content) for content in contents]
    return bytes(inference_pb2.PredictResponse(outputs=outputs).SerializeToString())


@pytest.mark.slow
def test_every_request_is_answered_rightly_or_refused_and_health_goes_on() -> None:
    plan = OverloadPlan(seconds=1.0, times=6.0, options=("--canary", "off"))
    result = run_overload(plan, lambda _: None)
    quiet, flood, after, impatient = result.phases

    for phase in result.phases:
        # A machine that is busy with other things may let a deadline pass; nothing else may happen to a request.
        assert set(phase.outcomes) <= {"right", "refused", "late"}
        assert phase.health_failed == 0
    assert quiet.outcomes["right"] > 0
    assert flood.outcomes["refused"] > flood.outcomes["right"] > 0
    assert after.outcomes["right"] > 0
    assert impatient.outcomes["refused"] > 0
    assert result.run_for_nobody >= 0
    assert None not in result.scrapes_s
    assert {figure.name: figure.found for figure in result.figures}["wrong or never answered"] == 0


def test_the_models_answers_are_known_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes(5))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(1).standard_normal((7, WIDTH)).astype(np.float32)

    (found,) = session.run(None, {"x": rows})
    assert found.tobytes() == expected(rows, 5).tobytes()


def test_what_is_not_the_right_answer_is_noted_as_what_it_is() -> None:
    messages, contents = requests(5, 2, 0)
    answers = iter([answered(contents[0]), answered(contents[0]), b"\xff"])

    def predict(request: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: ARG001
        try:
            return next(answers)
        except StopIteration:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
    service = PREDICT.strip("/").partition("/")[0]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        phase = Phase("p", 0.2, rate=100.0)
        (found,) = put_source(SourcePlan(port, (phase,), connections=1), messages, contents)
    finally:
        server.stop(None).wait()

    outcomes = [sent.outcome for sent in found.requests]
    assert outcomes[:4] == [OK, WRONG, WRONG, RESOURCE_EXHAUSTED]
    # Nobody serves health there.
    assert {sent.outcome for sent in found.health} == {12}


def test_only_the_whole_answer_is_right() -> None:
    messages, contents = requests(5, 2, 0)

    assert is_right(answered(contents[0]), contents[0])
    assert not is_right(answered(contents[1]), contents[0])
    assert not is_right(answered(contents[0], contents[0]), contents[0])
    assert not is_right(messages[0], contents[0])
    assert not is_right(b"\xff", contents[0])
