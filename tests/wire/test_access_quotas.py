"""How much each caller may do, over the wire; on both transports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from tests.wire.access_world import (
    CONTROL,
    HEALTH,
    OIP,
    OWN,
    access_text,
    predict,
    world,
)
from tests.wire.conforming import TRANSPORTS
from tests.wire.serving import WAIT_S, refused

from fitserve.control.v1 import control_pb2 as control
from fitserve_oip import health_pb2, inference_pb2
from fitserve_service.pages_http import Request
from fitserve_service.status import DETAILS_KEY

pytestmark = [
    pytest.mark.parametrize("transport", sorted(TRANSPORTS)),
    pytest.mark.needs_program("openssl"),
]


def test_requests_beyond_the_rate_are_told_when_to_come_again_and_nobody_else_is(
    transport: str, tmp_path: Path
) -> None:
    text = access_text() + "[quotas.infer]\nrequests_per_s = 0.001\nburst = 3\n"
    with world(tmp_path, transport, text) as made:
        codes = [made.code(f"{OWN}/Predict", predict(), "inferinfer") for _ in range(5)]
        assert codes == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 2
        with pytest.raises(grpc.RpcError) as caught:
            made.call(f"{OWN}/Predict", predict(), "inferinfer")
        failed: Any = caught.value
        status = Status.FromString(dict(failed.trailing_metadata())[DETAILS_KEY])
        retry = RetryInfo()
        assert status.details[1].Unpack(retry)
        assert 500 < retry.retry_delay.ToTimedelta().total_seconds() < 1001
        assert made.code(f"{OWN}/Predict", predict(), "wrong") == "UNAUTHENTICATED"
        exposition = made.server.answer_page(Request("/metrics")).content.decode()
        assert 'fitserve_access_refusals_total{method="Predict",reason="QUOTA"} 3.0' in exposition
        assert 'fitserve_access_refusals_total{method="Predict",reason="NOT_AUTHENTICATED"} 1.0' in exposition
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"
        # What describes is not counted, and health answers throughout.
        assert made.code(f"{CONTROL}/ListModels", control.ListModelsRequest(), "inferinfer") == "OK"
        assert made.code(f"{HEALTH}/Check", health_pb2.HealthCheckRequest(), "inferinfer") == "OK"


@pytest.mark.parametrize(
    ("quota", "rows"), [("examples_in_flight = 8", 9), ("bytes_in_flight = 100", 20), ("queue_share = 0.000006", 9)]
)
def test_what_is_in_flight_is_bounded_and_given_back(transport: str, tmp_path: Path, quota: str, rows: int) -> None:
    with world(tmp_path, transport, access_text() + f"[quotas.infer]\n{quota}\n") as made:
        method = made.channel.unary_unary(f"/{OWN}/Predict")
        metadata = (("authorization", "Bearer inferinfer"),)
        for _ in range(3):
            too_much = refused(method, predict(rows=rows).SerializeToString(), metadata=metadata)
            assert too_much[:2] == ("RESOURCE_EXHAUSTED", "QUOTA")
            # What was answered, refused or malformed no longer counts.
            assert refused(method, b"\xff", metadata=metadata)[1] == "MALFORMED_MESSAGE"
            assert refused(method, predict("none").SerializeToString(), metadata=metadata)[1] == "MODEL_NOT_FOUND"
            for _ in range(10):
                assert method(predict(rows=4).SerializeToString(), timeout=WAIT_S, metadata=metadata)
        assert made.code(f"{OWN}/Predict", predict(rows=rows), "allall") == "OK"


def test_a_quota_within_a_stream_fails_its_request_and_not_the_stream(transport: str, tmp_path: Path) -> None:
    def request(rows: int) -> bytes:
        message = inference_pb2.ModelInferRequest(model_name="open", id=str(rows))
        message.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
        message.raw_input_contents.append(np.ones((rows, 2), np.float32).tobytes())
        return message.SerializeToString()

    with world(tmp_path, transport, access_text() + "[quotas.infer]\nexamples_in_flight = 8\n") as made:
        answers = made.channel.stream_stream(f"/{OIP}/ModelStreamInfer")(
            iter([request(rows) for rows in (8, 9, 1, 8) * 5]),
            timeout=WAIT_S,
            metadata=(("authorization", "Bearer inferinfer"),),
        )
        found = [inference_pb2.ModelStreamInferResponse.FromString(answer) for answer in answers]
    errors = {answer.infer_response.id: answer.error_message for answer in found}
    assert len(found) == 20
    assert "at most 8 examples in flight" in errors["9"]
    assert found[0].error_message == ""


def test_callers_without_a_credential_may_have_quotas_on_this_machine(transport: str, tmp_path: Path) -> None:
    text = '[anonymous]\nscopes = ["infer"]\n[quotas.default]\nrequests_per_s = 0.001\nburst = 2\n'
    cleartext = {"tls_cert": None, "tls_key": None}
    with world(tmp_path, transport, text, **cleartext) as made, made.shown(None):
        codes = [made.code(f"{OWN}/Predict", predict()) for _ in range(3)]
        assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED"]
        assert made.code(f"{CONTROL}/UnloadModel", control.UnloadModelRequest(name="open")) == "PERMISSION_DENIED"


def test_messages_that_fail_before_they_are_queued_count_all_the_same(transport: str, tmp_path: Path) -> None:
    text = access_text() + "[quotas.infer]\nrequests_per_s = 0.001\nburst = 4\n"
    with world(tmp_path, transport, text, max_message_bytes=4096) as made:
        method, metadata = made.channel.unary_unary(f"/{OWN}/Predict"), (("authorization", "Bearer inferinfer"),)
        found = [
            refused(method, message, metadata=metadata)[1]
            for message in (b"\xff", b"x" * 5000, predict("none").SerializeToString(), b"x" * 5000, b"x" * 5000)
        ]
        assert found == ["MALFORMED_MESSAGE", "TOO_LARGE", "MODEL_NOT_FOUND", "TOO_LARGE", "QUOTA"]
        assert made.code(f"{OWN}/Predict", predict(), "inferinfer") == "RESOURCE_EXHAUSTED"
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"


@pytest.mark.parametrize("message", [b"\xff", inference_pb2.ModelInferRequest(model_name="none").SerializeToString()])
def test_a_stream_of_what_is_never_queued_ends_at_its_quota(transport: str, tmp_path: Path, message: bytes) -> None:
    text = access_text() + "[quotas.infer]\nrequests_per_s = 0.001\nburst = 4\n"
    with world(tmp_path, transport, text) as made:
        answers = made.channel.stream_stream(f"/{OIP}/ModelStreamInfer")(
            iter([message] * 20), timeout=WAIT_S, metadata=(("authorization", "Bearer inferinfer"),)
        )
        told: list[bytes] = []
        with pytest.raises(grpc.RpcError) as caught:
            told.extend(answers)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(told) == 5


def test_what_is_read_beside_the_loop_counts_against_the_same_quota(transport: str, tmp_path: Path) -> None:
    message = inference_pb2.ModelInferRequest(model_name="open")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[20_000, 2])
    tensor.contents.fp32_contents.extend([1.0] * 40_000)
    metadata = (("authorization", "Bearer inferinfer"),)
    with world(tmp_path, transport, access_text() + "[quotas.infer]\nexamples_in_flight = 19999\n") as made:
        method = made.channel.unary_unary(f"/{OIP}/ModelInfer")
        for _ in range(3):
            too_much = refused(method, message.SerializeToString(), metadata=metadata)
            assert too_much[:2] == ("RESOURCE_EXHAUSTED", "QUOTA")
            # What was refused no longer counts.
            assert method(predict_oip(), timeout=WAIT_S, metadata=metadata)


def predict_oip() -> bytes:
    message = inference_pb2.ModelInferRequest(model_name="open", raw_input_contents=[bytes(8 * 19_999)])
    message.inputs.add(name="x", datatype="FP32", shape=[19_999, 2])
    return message.SerializeToString()
