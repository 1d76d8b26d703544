"""Laws of everything that reads untrusted bytes, each with a slow plain oracle beside it.

A law takes any bytes and raises AssertionError where the reader and its oracle part. Property tests and fuzzers share
the laws.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from fitserve.inference.v1 import inference_pb2
from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import BYTES, NUMPY_DTYPES
from fitserve_contract.manifest import Manifest, ManifestError, TensorSpec
from fitserve_contract.onnx_file import OnnxFileError, read_facts
from fitserve_oip import inference_pb2 as oip_pb2
from fitserve_service import codec, codec_oip
from fitserve_service.errors import Code, ServiceError
from fitserve_service.messages import parse
from fitserve_service.signature import Signature, Tensor

CLIENT_FAULTS = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED)
"""Codes that tell a caller that it is the caller's own fault."""

_FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "BF16": "H", "FP32": "f", "FP64": "d",
}  # fmt: skip


def plain_elements(datatype: str, shape: Sequence[int], content: bytes) -> list[Any] | None:
    """Reads a tensor's elements one by one; None where bytes, shape and datatype do not fit."""
    if datatype not in NUMPY_DTYPES or len(shape) > tensor_bytes.MAX_RANK or any(size < 0 for size in shape):
        return None
    bounding = count = 1
    for size in shape:
        count *= size
        bounding *= size or 1
    if bounding > tensor_bytes.MAX_ELEMENTS:
        return None
    return _plain_strings(count, content) if datatype == BYTES else _plain_numbers(_FORMATS[datatype], count, content)


def tensor_law(datatype: str, shape: Sequence[int], content: bytes) -> None:
    """A tensor is taken exactly where its bytes fit, and then has the elements that stand there, bit for bit.

    Of BOOL each byte but 0 is true.
    """
    expected = plain_elements(datatype, shape, content)
    try:
        array = tensor_bytes.decode("t", datatype, shape, content)
    except ValueError:
        assert expected is None
        return
    assert expected is not None
    assert array.shape == tuple(shape)
    assert tensor_bytes.encode(array, datatype) == (bytes(map(bool, content)) if datatype == "BOOL" else content)
    assert len(expected) == array.size
    if datatype not in ("FP16", "FP32", "FP64"):
        assert array.reshape(-1).tolist() == expected


def request_law(content: bytes) -> None:
    """A request of either API is decoded into what fits the signature, or refused as its caller's fault."""
    signature = Signature((TensorSpec("x", "FP32", ("B", 2)),), (TensorSpec("y", "FP32", ("B", 2)),), True)
    for is_oip in (False, True):
        try:
            inputs = _decoded(content, is_oip)
            count = signature.check(inputs)
        except ServiceError as error:
            _check_refusal(error)
        else:
            assert inputs.keys() == {"x"}
            assert inputs["x"].array.shape == (count, 2)
            assert inputs["x"].array.dtype == np.float32


def onnx_file_law(content: bytes) -> None:
    """The reader never misses an external file that the protobuf runtime would find, and ends on any bytes."""
    try:
        found = read_facts(content).external_files
    except OnnxFileError:
        return
    try:
        parsed = onnx.ModelProto.FromString(content)
        expected = _external_files([parsed.graph, *parsed.functions])
    except (DecodeError, UnicodeDecodeError):
        return
    assert expected <= found, expected - found


def manifest_law(content: bytes) -> None:
    """A manifest is refused in words, or says the same when it is written and read again."""
    try:
        manifest = Manifest.from_bytes(content)
    except ManifestError as error:
        _check_length(str(error))
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def _check_refusal(error: ServiceError) -> None:
    assert error.code in CLIENT_FAULTS, error
    _check_length(error.message)


def _check_length(text: str) -> None:
    assert len(text) < 2_000


def _decoded(content: bytes, is_oip: bool) -> dict[str, Tensor]:
    if is_oip:
        return codec_oip.decode_inputs(parse(oip_pb2.ModelInferRequest, content))
    return codec.decode_inputs(parse(inference_pb2.PredictRequest, content).inputs)


def _plain_numbers(form: str, count: int, content: bytes) -> list[Any] | None:
    size = struct.calcsize("<" + form)
    if len(content) != count * size:
        return None
    return [struct.unpack("<" + form, content[index * size : (index + 1) * size])[0] for index in range(count)]


def _plain_strings(count: int, content: bytes) -> list[Any] | None:
    elements, rest = [], content
    if count * 4 > len(content):
        return None
    for _ in range(count):
        if len(rest) < 4:
            return None
        length = int.from_bytes(rest[:4], "little")
        element, rest = rest[4 : 4 + length], rest[4 + length :]
        if len(element) != length:
            return None
        elements.append(element)
    return None if rest else elements


def _external_files(messages: Sequence[Any]) -> set[str]:
    """Walks every message by reflection: each tensor within, wherever it is."""
    found: set[str] = set()
    for message in messages:
        if isinstance(message, onnx.TensorProto):
            locations = [entry.value for entry in message.external_data if entry.key == "location"]
            found |= set(locations)
        for field, value in message.ListFields():
            if field.message_type is not None:
                found |= _external_files(list(value) if field.is_repeated else [value])
    return found
