"""The bulk of a soak sees each answer that is wrong, and takes each that is right."""

from __future__ import annotations

from random import Random

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.benchmarks.echoing import METHOD, serving

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_benchmarks.serve_requests import MODEL_INFER
from fitserve_benchmarks.soak_bulk import METHODS, PREDICT, BulkPlan, KnownCall, known_calls, put_bulk
from fitserve_oip.inference_pb2 import ModelInferResponse


def right_answer(call: KnownCall) -> bytes:
    """What a server of the model answers."""
    shape, content = call.expected.shape, call.expected.tobytes()
    if call.method == MODEL_INFER:
        response = ModelInferResponse(model_name="chaos")
        response.outputs.add(name="y", datatype="FP32", shape=shape)
        response.raw_output_contents.append(content)
        return response.SerializeToString()
    tensor = tensor_pb2.Tensor(name="y", datatype="FP32", shape=shape, content=content)
    return inference_pb2.PredictResponse(outputs=[tensor]).SerializeToString()


@given(st.integers(0, 2**31), st.sampled_from(METHODS), st.data())
def test_a_right_answer_is_right_and_no_other_content_is(seed: int, method: str, data: st.DataObject) -> None:
    (call,) = known_calls(method, Random(seed), 1)
    answer = right_answer(call)
    assert call.is_right(answer)
    at = answer.find(call.expected.tobytes()) + data.draw(st.integers(0, call.expected.nbytes - 1))
    changed = answer[:at] + bytes((answer[at] ^ 0x41,)) + answer[at + 1 :]
    assert not call.is_right(changed)
    assert not call.is_right(answer[:at])
    assert not call.is_right(None)


@pytest.mark.parametrize("wrong_every", [0, 7])
def test_each_wrong_answer_is_counted(wrong_every: int) -> None:
    calls = {call.request: right_answer(call) for call in known_calls(PREDICT, Random(3))}
    answered: list[bytes] = []

    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        answered.append(request)
        right = calls[request]
        return right[:-1] + b"!" if wrong_every and len(answered) % wrong_every == 0 else right

    with serving(answer, *PREDICT.strip("/").split("/"), thread_count=1) as port:
        result = put_bulk(BulkPlan(port, PREDICT, 500, 3, connections=2, in_flight=8))
    assert result.wrong_count == (500 // wrong_every if wrong_every else 0)
    assert result.right_count + result.wrong_count == len(answered) == 500
    assert all("expected [[" in example for example in result.examples)


def test_a_refused_call_is_not_right() -> None:
    with serving(lambda request, _: request) as port:
        result = put_bulk(BulkPlan(port, METHOD.replace("Echo", "Other"), 10, 0, connections=1, in_flight=2))
    assert (result.right_count, result.wrong_count) == (0, 10)
    assert "gRPC status 12" in result.examples[0]
