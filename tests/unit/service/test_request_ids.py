"""Ids taken off requests and put behind answers mean what protobuf says that they mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from fitserve_service.calls import Metadata, Origin
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.request_ids import NamedCall, split_id

short_ascii = st.text(st.characters(max_codepoint=127), min_size=1, max_size=127)


def request(model: str, version: str, name: str) -> ModelInferRequest:
    made = ModelInferRequest(model_name=model, model_version=version, id=name, raw_input_contents=[b"\x1a\x01a"])
    made.inputs.add(name="x", datatype="UINT8", shape=[3])
    return made


@given(st.text(min_size=1, max_size=40), st.sampled_from(["", "1", "123456789"]), short_ascii)
def test_what_is_left_is_the_request_without_its_id(model: str, version: str, name: str) -> None:
    split = split_id(request(model, version, name).SerializeToString())
    assert split is not None
    rest, field = split
    assert rest == request(model, version, "").SerializeToString()
    answer = ModelInferResponse(model_name=model, raw_output_contents=[b"abc"])
    named = ModelInferResponse.FromString(answer.SerializeToString() + field)
    assert named == ModelInferResponse(model_name=model, id=name, raw_output_contents=[b"abc"])


@given(st.binary(max_size=60))
def test_any_bytes_are_the_same_request_with_the_id_put_back(message: bytes) -> None:
    split = split_id(message)
    if split is None:
        return
    rest, field = split
    assert len(rest) + len(field) == len(message)
    try:
        expected = ModelInferRequest.FromString(message)
    except Exception:
        return
    found = ModelInferRequest.FromString(rest)
    if not found.id:
        found.MergeFromString(field)
    assert found == expected


@pytest.mark.parametrize(
    "message",
    [
        request("m", "", "").SerializeToString(),
        request("m", "1", "n" * 128).SerializeToString(),
        request("m" * 128, "", "n").SerializeToString(),
        request("m", "1" * 128, "n").SerializeToString(),
        request("m", "", "größe").SerializeToString(),
        request("", "1", "n").SerializeToString(),
        request("m", "1", "abc").SerializeToString()[:8],
        b"",
        b"\x0a",
        b"\x0a\x01m\x12",
        b"\x0a\x01m\x1a",
    ],
)
def test_others_are_left_as_they_are(message: bytes) -> None:
    assert split_id(message) is None


class Call:
    """A call that notes what becomes of it."""

    method = "/t.T/M"
    deadline_s = 5.0
    metadata: Metadata = (("a", "b"),)

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def origin(self) -> Origin:
        return Origin("here")

    def on_cancel(self, callback: Any) -> None:
        self.noted.append(callback)

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        self.noted.append((message, trailing))

    def fail(self, error: ServiceError) -> None:
        self.noted.append(error)


def test_a_named_call_is_the_call_but_for_its_answer() -> None:
    call, error = Call(), ServiceError(Reason.QUOTA, "no")
    named = NamedCall(call, b"\x1a\x01n")
    assert (named.method, named.deadline_s, named.metadata, named.origin()) == (
        "/t.T/M",
        5.0,
        call.metadata,
        Origin("here"),
    )
    named.on_cancel(print)
    named.reply(b"answer", (("t", "1"),))
    named.fail(error)
    assert call.noted == [print, (b"answer\x1a\x01n", (("t", "1"),)), error]
