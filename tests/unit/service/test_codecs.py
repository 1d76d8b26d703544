"""Messages and tensors: round trips, and bytes of any kind, which never cause more than a refusal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_oip import inference_pb2 as oip
from fitserve_service import codec, codec_oip
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import parse
from fitserve_service.runs import Completed, Timing
from fitserve_service.servicers import inference
from fitserve_service.servicers import oip as oip_servicer
from fitserve_service.servicers.oip import target_of
from fitserve_service.signature import Tensor

DATATYPES = st.sampled_from([*NUMPY_DTYPES, "FP8", ""])
SHAPES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=5)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(list(NUMPY_DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = int(np.prod(shape))
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        return Tensor(datatype, array.reshape(shape))
    size = NUMPY_DTYPES[datatype].itemsize
    content = draw(st.binary(min_size=count * size, max_size=count * size))
    if datatype == "BOOL":
        content = bytes(byte & 1 for byte in content)
    return Tensor(datatype, np.frombuffer(content, NUMPY_DTYPES[datatype]).reshape(shape))


def same(left: Tensor, right: Tensor) -> bool:
    if left.datatype == "BYTES":
        return left.array.shape == right.array.shape and bool((left.array == right.array).all())
    return left.array.shape == right.array.shape and left.array.tobytes() == right.array.tobytes()


@given(tensor=tensors())
def test_a_tensor_survives_its_message_bit_by_bit(tensor: Tensor) -> None:
    message = tensor_pb2.Tensor.FromString(codec.encode_tensor("x", tensor).SerializeToString())
    read = codec.decode_inputs([message])["x"]
    assert read.datatype == tensor.datatype
    assert same(read, tensor)


def test_a_tensor_is_read_in_place() -> None:
    message = tensor_pb2.Tensor(name="x", datatype="FP32", shape=[2], content=bytes(8))
    array = codec.decode_inputs([message])["x"].array
    assert not array.flags.owndata
    assert not array.flags.writeable


def refusal(read: Any, *arguments: Any) -> Reason | None:
    """Reads, and gives the reason where it is refused; anything else that is raised is a failure."""
    try:
        read(*arguments)
    except ServiceError as error:
        return error.reason
    return None


@settings(max_examples=300, deadline=None)
@given(datatype=DATATYPES, shape=SHAPES, content=st.binary(max_size=80), name=st.text(max_size=5))
def test_any_tensor_is_read_or_refused(datatype: str, shape: list[int], content: bytes, name: str) -> None:
    message = tensor_pb2.Tensor(name=name, datatype=datatype, shape=shape, content=content)
    assert refusal(codec.decode_inputs, [message]) in (None, Reason.INVALID_INPUT)
    request = oip.ModelInferRequest(raw_input_contents=[content])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    assert refusal(codec_oip.decode_inputs, request) in (None, Reason.INVALID_INPUT)


@settings(max_examples=300, deadline=None)
@given(
    datatype=DATATYPES,
    shape=SHAPES,
    ints=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
    floats=st.lists(st.floats(width=32), max_size=4),
    texts=st.lists(st.binary(max_size=4), max_size=4),
)
def test_any_contents_are_read_or_refused(
    datatype: str, shape: list[int], ints: list[int], floats: list[float], texts: list[bytes]
) -> None:
    request = oip.ModelInferRequest()
    contents = oip.InferTensorContents(int_contents=ints, fp32_contents=floats, bytes_contents=texts)
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=contents)
    assert refusal(codec_oip.decode_inputs, request) in (None, Reason.INVALID_INPUT)


@given(content=st.binary(min_size=3, max_size=3))
def test_raw_bool_bytes_mean_the_same_on_every_api(content: bytes) -> None:
    native = tensor_pb2.Tensor(name="x", datatype="BOOL", shape=[3], content=content)
    request = oip.ModelInferRequest(raw_input_contents=[content])
    request.inputs.add(name="x", datatype="BOOL", shape=[3])
    for inputs in (codec.decode_inputs([native]), codec_oip.decode_inputs(request)):
        assert inputs["x"].array.tobytes() == bytes(byte != 0 for byte in content)


def test_contents_without_an_element_are_not_in_the_way_of_raw_ones() -> None:
    request = oip.ModelInferRequest(raw_input_contents=[bytes(8), bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[2], contents=oip.InferTensorContents())
    request.inputs.add(name="z", datatype="FP32", shape=[1], contents=oip.InferTensorContents(fp32_contents=[]))
    read = codec_oip.decode_inputs(oip.ModelInferRequest.FromString(request.SerializeToString()))
    assert [tensor.array.tolist() for tensor in read.values()] == [[0, 0], [0]]


def test_contents_with_an_element_are_in_the_way_of_raw_ones() -> None:
    request = oip.ModelInferRequest(raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1], contents=oip.InferTensorContents(int_contents=[0]))
    with pytest.raises(ServiceError, match="input 'x': expected no contents beside raw_input_contents"):
        codec_oip.decode_inputs(request)


@settings(max_examples=300, deadline=None)
@given(message=st.binary(max_size=200))
@example(message=b"\x1a\x03\x00\x00\x1a\x80\x03")  # a shape that is longer than its tensor
@pytest.mark.parametrize("kind", [pb.PredictRequest, pb.EvaluateRequest, oip.ModelInferRequest])
def test_any_bytes_are_a_message_or_refused(kind: Any, message: bytes) -> None:
    assert refusal(parse, kind, message) in (None, Reason.MALFORMED_MESSAGE)


@given(values=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=6))
def test_typed_integers_are_read_exactly_or_named(values: list[int]) -> None:
    request = oip.ModelInferRequest()
    contents = oip.InferTensorContents(int_contents=values)
    request.inputs.add(name="x", datatype="INT8", shape=[len(values)], contents=contents)
    outside = [value for value in values if not -128 <= value <= 127]
    if outside:
        with pytest.raises(ServiceError, match=f"got {outside[0]}$"):
            codec_oip.decode_inputs(request)
    else:
        assert codec_oip.decode_inputs(request)["x"].array.tolist() == values


@given(version=st.text(max_size=25) | st.integers(-5, 2**70).map(str))
def test_a_version_is_a_positive_decimal_number_or_refused(version: str) -> None:
    is_number = version.isascii() and version.isdecimal() and len(version) <= 19 and int(version or 0) >= 1
    if not version:
        assert target_of("m", version).version is None
    elif is_number:
        assert target_of("m", version).version == int(version)
    else:
        with pytest.raises(ServiceError, match="expected a number of at least 1"):
            target_of("m", version)


@given(outputs=st.dictionaries(st.text(max_size=9), tensors(), max_size=3), request_id=st.text(max_size=9))
def test_answers_are_written_as_protobuf_writes_them(outputs: dict[str, Tensor], request_id: str) -> None:
    served: Any = SimpleNamespace(model="m", version=3)
    completed = Completed(outputs, Timing(0, 0))
    prediction = pb.PredictResponse(
        model_name="m", model_version=3, outputs=[codec.encode_tensor(name, tensor) for name, tensor in outputs.items()]
    )
    assert inference._encode_prediction(served, completed) == prediction.SerializeToString()
    response = oip.ModelInferResponse(model_name="m", model_version="3", id=request_id)
    for name, tensor in outputs.items():
        response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.array.shape)
        response.raw_output_contents.append(tensor_bytes.encode(tensor.array, tensor.datatype))
    assert b"".join(codec_oip.encode_response(served, request_id, completed)) == response.SerializeToString()
    request = oip.ModelInferRequest(id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    response.parameters["triton_final_response"].bool_param = True
    streamed = oip.ModelStreamInferResponse(infer_response=response).SerializeToString()
    assert oip_servicer._encode_streamed(request, served, completed) == streamed


@pytest.mark.parametrize("count", [3, 70_000])
@pytest.mark.parametrize("datatype", ["INT8", "UINT64", "FP32", "BOOL", "BYTES"])
def test_typed_contents_of_any_length_are_read_in_order(datatype: str, count: int) -> None:
    values: list[Any] = [[1, 0, 5][index % 3] for index in range(count)]
    if datatype == "BYTES":
        values = [b"%d" % value for value in values]
    request = oip.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[count])
    getattr(tensor.contents, codec_oip.CONTENTS_FIELDS[datatype]).extend(values)
    expected = [bool(value) for value in values] if datatype == "BOOL" else values
    assert codec_oip.decode_inputs(request)["x"].array.tolist() == expected


def test_elements_of_all_inputs_share_one_bound() -> None:
    request = oip.ModelInferRequest(raw_input_contents=[bytes(4 * 100), bytes(4 * 100)])
    for name in ("x", "y"):
        request.inputs.add(name=name, datatype="BYTES", shape=[100])
    assert len(codec_oip.decode_inputs(request, codec.ElementRoom(200))) == 2
    with pytest.raises(ServiceError, match="input 'y': expected at most 199 elements") as refused:
        codec_oip.decode_inputs(request, codec.ElementRoom(199))
    assert refused.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.parametrize(("text", "expected"), [(b"a" * 6400, 51), ("\U0001f600".encode() * 1600, 101)])
def test_large_text_that_is_not_ascii_counts_twice(text: bytes, expected: int, *, is_raw: bool) -> None:
    request = oip.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[1])
    if is_raw:
        request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    else:
        tensor.contents.bytes_contents.append(text)
    assert codec_oip.decode_inputs(request, codec.ElementRoom(expected))["x"].array.tolist() == [text]
    with pytest.raises(ServiceError, match="expected at most"):
        codec_oip.decode_inputs(request, codec.ElementRoom(expected - 1))
