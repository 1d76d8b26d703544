"""Contents lifted out before the parser: what is read with them is what protobuf reads in the whole message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1.tensor_pb2 import Tensor
from fitserve_oip.inference_pb2 import ModelInferRequest
from fitserve_service import codec, codec_oip
from fitserve_service.messages import LAYOUTS
from fitserve_service.requests.contents import _MARK, LARGE_BYTES, Contents, lift
from fitserve_service.requests.message_reader import parse_lifted

PADDING = b"\x0a\x81\x80\x80\x01" + b"m" * ((2 << 20) + 1)
"""A name that makes a message large."""

sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 5000])
contents = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255)) | st.builds(
    lambda index: _MARK + bytes([index, 0, 0, 0]), st.integers(0, 5)
)


def written(number: int, content: bytes) -> bytes:
    return codec.field_head(number, len(content)) + content


def restored(contents: Contents, found: Sequence[bytes]) -> list[bytes]:
    return [bytes(contents.of(content)) for content in found]


@given(st.lists(contents, max_size=4), st.lists(st.sampled_from([b"\x32\x00", b"\x25abcd", b"\x20\x05"]), max_size=3))
def test_raw_contents_are_what_protobuf_reads(raws: list[bytes], others: list[bytes]) -> None:
    pieces = [piece for pair in zip((written(7, raw) for raw in raws), others, strict=False) for piece in pair]
    message = PADDING + b"".join([*pieces, *(written(7, raw) for raw in raws)])
    expected = ModelInferRequest.FromString(message)
    request, lifted = parse_lifted(ModelInferRequest, message)
    assert restored(lifted, request.raw_input_contents) == list(expected.raw_input_contents)
    request.ClearField("raw_input_contents")
    expected.ClearField("raw_input_contents")
    assert request == expected


@given(st.lists(st.tuples(st.sampled_from([2, 3]), st.lists(contents, max_size=3)), max_size=4))
def test_contents_within_tensors_are_what_protobuf_reads(tensors: list[tuple[int, list[bytes]]]) -> None:
    """A field that repeats, in a tensor or with the message around it, counts as its parser has it."""
    head = Tensor(name="x", datatype="FP32", shape=[1, 2]).SerializeToString()
    parts = [written(number, head + b"".join(written(4, each) for each in found)) for number, found in tensors]
    message = PADDING.replace(b"\x0a", b"\x7a", 1) + b"".join(parts)
    expected = pb.EvaluateRequest.FromString(message)
    request, lifted = parse_lifted(pb.EvaluateRequest, message)
    assert restored(lifted, [tensor.content for tensor in request.inputs]) == [x.content for x in expected.inputs]
    assert restored(lifted, [request.labels.content]) == [expected.labels.content]
    assert [tensor.shape for tensor in request.inputs] == [tensor.shape for tensor in expected.inputs]


@pytest.mark.parametrize("padding", range(8))
def test_numbers_are_read_in_place_where_they_are_aligned(padding: int) -> None:
    numbers = np.arange(1 << 18, dtype="<f4")
    request = ModelInferRequest(model_name="m" * (padding + 1), raw_input_contents=[numbers.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[len(numbers)])
    message = request.SerializeToString()
    lean, lifted = lift(message, LAYOUTS["inference.ModelInferRequest"])
    assert len(lean) < 200
    array = codec_oip.decode_inputs(ModelInferRequest.FromString(lean), contents=lifted)["x"].array
    assert (array == numbers).all()
    assert array.ctypes.data % array.itemsize == 0
    begin = message.index(numbers.tobytes())
    base: Any = np.frombuffer(message, np.uint8)
    assert np.shares_memory(array, base) == (begin % 8 == 0)


def test_labels_and_inputs_of_our_own_api_are_restored() -> None:
    numbers, labels = np.arange(1 << 18, dtype="<f4"), np.arange(1 << 11, dtype="<i8")
    message = pb.EvaluateRequest(
        labels=Tensor(datatype="INT64", shape=[1 << 11], content=labels.tobytes()),
        inputs=[Tensor(name="x", datatype="FP32", shape=[1 << 18], content=numbers.tobytes())],
    ).SerializeToString()
    request, lifted = parse_lifted(pb.EvaluateRequest, message)
    assert request.ByteSize() < 200
    assert (codec.decode_inputs(request.inputs, contents=lifted)["x"].array == numbers).all()
    assert (codec.decode_tensor("labels", request.labels, contents=lifted).array == labels).all()


def test_a_small_message_is_parsed_as_it_is() -> None:
    message = written(7, bytes(8192))
    assert len(message) < LARGE_BYTES
    assert lift(message, LAYOUTS["inference.ModelInferRequest"])[0] is message
