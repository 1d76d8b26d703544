"""Ids taken off requests and put behind answers mean what protobuf says that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract.manifest import TensorSpec
from fitserve_oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from fitserve_service import codec_oip
from fitserve_service.calls import Metadata, Origin
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.request_ids import NamedCall, split_id
from fitserve_service.runs import Completed, Timing
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers import oip
from fitserve_service.signature import Signature

TENSOR = (
    ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[3]).SerializeToString(),
    b"abc",
)


def varint(number: int, padding: int = 0) -> bytes:
    """Writes a number; with padding, in more bytes than it takes: protobuf reads that too."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)] + [0] * padding
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def field(number: int, content: bytes, padding: int = 0) -> bytes:
    return varint(number << 3 | 2, padding) + varint(len(content), padding) + content


@dataclass(eq=False)
class Instance:
    """What a template looks at of a loaded version."""

    signature: Signature
    version: int = 1
    model: str = "m"


SIGNATURE = Signature((TensorSpec("x", "UINT8", (3,)),), (TensorSpec("x", "UINT8", (3,)),), has_batch_axis=False)
SERVED = cast(ServedVersion, Instance(SIGNATURE))

paddings = st.integers(0, 2)
ids = st.builds(field, st.just(3), st.sampled_from([b"", b"", b"a", "ö".encode(), b"n" * 130]), paddings)
numbers = st.builds(lambda number, value, pad: varint(number << 3, pad) + varint(value, pad), st.sampled_from([3, 900]),
                    st.integers(0, 1 << 40), paddings)  # fmt: skip
unknown = st.builds(field, st.sampled_from([900, 1 << 20]), st.binary(max_size=6), paddings)
names = st.builds(field, st.just(1), st.sampled_from([b"m", b"other"]), paddings)
versions = st.builds(field, st.just(2), st.sampled_from([b"", b"1"]), paddings)
tensors = st.just(field(5, TENSOR[0]))
contents = st.binary(min_size=3, max_size=3).map(lambda content: field(7, content))
others = st.lists(st.one_of(ids, ids, numbers, unknown, versions, names), max_size=3)

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


def read_by_template(message: bytes) -> tuple[Any, ...] | None:
    """Reads a message as the servicer does whose templates were made of its own kind; None where none fits it."""
    split = split_id(message)
    template = oip._infer_template(message) if split is None else oip._nameless_template(split[0])
    if template is None:
        return None
    inputs = template.prepare(message if split is None else split[0], SERVED).inputs
    answer = template.encode(SERVED, Completed(inputs, Timing(0, 0)))
    named = ModelInferResponse.FromString(answer if split is None else answer + split[1])
    return template.target, named.id, {name: tensor.array.tolist() for name, tensor in inputs.items()}


def read_by_protobuf(message: bytes) -> tuple[Any, ...]:
    request = ModelInferRequest.FromString(message)
    inputs = codec_oip.decode_inputs(request)
    target = oip.target_of(request.model_name, request.model_version)
    return target, request.id, {name: tensor.array.tolist() for name, tensor in inputs.items()}


@settings(max_examples=400)
@given(
    st.sampled_from([b"", field(3, b""), field(3, b"a"), field(3, b"a")]),
    others,
    contents,
    st.randoms(use_true_random=False),
)
def test_a_template_reads_ids_as_protobuf_does(in_place: bytes, more: list[bytes], content: bytes, r: Any) -> None:
    pieces = [field(5, TENSOR[0]), content]
    for piece in more:
        pieces.insert(r.randint(0, len(pieces)), piece)
    # Now and then something stands before the name and the id, and the id is in no place to be taken from.
    begin = [] if r.random() < 0.1 else [field(1, b"m"), in_place]
    message = b"".join([*begin, *pieces])
    try:
        expected = read_by_protobuf(message)
    except (DecodeError, ServiceError):
        return
    assert read_by_template(message) in (None, expected)


@pytest.mark.parametrize(
    ("ids_of", "is_by_template"),
    [
        ([b"a"], True),
        ([b""], True),
        ([b"a", b""], False),
        ([b"", b"a"], False),
        ([b"a", b"b"], False),
        ([b"a", b"", b"b"], False),
        ([b"a", b"b", b""], False),
    ],
)
@pytest.mark.parametrize("padding", [0, 1])
def test_of_ids_that_come_more_than_once_the_last_counts(
    ids_of: list[bytes], is_by_template: bool, padding: int
) -> None:
    message = field(1, b"m") + field(3, ids_of[0]) + field(5, TENSOR[0]) + field(7, b"abc")
    message += b"".join(field(3, each, padding) for each in ids_of[1:])
    found = read_by_template(message)
    assert (found is not None) is is_by_template
    assert found in (None, read_by_protobuf(message))
    assert read_by_protobuf(message)[1] == ids_of[-1].decode()


def test_an_id_with_a_field_of_its_number_and_another_type_is_an_id() -> None:
    message = field(1, b"m") + field(3, b"a") + field(5, TENSOR[0]) + field(7, b"abc") + varint(3 << 3) + b"\x07"
    found = read_by_template(message)
    assert found is not None
    assert found == read_by_protobuf(message)
    assert found[1] == "a"


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
