"""Tensors of the Open Inference Protocol: raw or typed contents in, raw contents out."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import BYTES, NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tensor_bytes import Array, element_count, shape_text
from fitserve_oip.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from fitserve_service.codec import MAX_NAME_CHARS, ElementRoom, add_input, decode_raw, field_head
from fitserve_service.engine import Completed
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.requests.contents import Contents
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor

CONTENTS_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Datatype to the field of InferTensorContents that holds its elements; FP16 and BF16 have none."""

_RAW_OUTPUTS: Final = 6
"""ModelInferResponse.raw_output_contents."""

_AT_ONCE: Final = 1 << 15
"""Numbers that are converted in one step of C: a few milliseconds, so that other threads have their turn."""

UNSERVED_PARAMETERS: Final = ("shared_memory_region", "classification")
"""Parameters of a tensor that change what it is: ignoring them would answer something else than was asked for."""


def decode_inputs(
    request: ModelInferRequest, room: ElementRoom | None = None, contents: Contents | None = None
) -> dict[str, Tensor]:
    """Reads a request's inputs, raw ones in place.

    Args:
        request: The message; `messages.parse` has counted its typed contents.
        room: What is left for BYTES elements; None: as much as is there by default.
        contents: What was lifted out of the request; None: nothing.

    Returns:
        Input name to tensor, in the request's order.

    Raises:
        ServiceError: INVALID_INPUT; a name comes twice, raw and typed contents come together, or a tensor's datatype,
            shape and elements do not fit. INVALID_REQUEST; a parameter that is not served. TOO_LARGE; more BYTES
            elements than there is room for.
    """
    has_raw = _check_contents(request)
    room = room or ElementRoom()
    inputs: dict[str, Tensor] = {}
    for index, tensor in enumerate(request.inputs):
        what = f"input '{tensor.name[:MAX_NAME_CHARS]}'"
        if has_raw:
            content = request.raw_input_contents[index]
            raw = contents.of(content) if contents is not None else content
            decoded = decode_raw(what, tensor.datatype, tuple(tensor.shape), raw, room=room)
        else:
            decoded = _decode_typed(what, tensor, room)
        add_input(inputs, tensor.name, decoded)
    return inputs


def output_names(request: ModelInferRequest) -> list[str]:
    """Gives the names of the outputs asked for.

    Raises:
        ServiceError: INVALID_REQUEST; a parameter that is not served.
    """
    for output in request.outputs:
        _check_parameters(f"output '{output.name[:MAX_NAME_CHARS]}'", output.parameters)
    return [output.name for output in request.outputs]


def encode_response(
    served: ServedVersion, request_id: str, completed: Completed, *, is_marked_final: bool = False
) -> list[bytes | memoryview]:
    """Writes an answer as pieces to join; outputs are raw, as Triton's are.

    The message ends with the contents (its highest field), so that protobuf writes what is before them, and they are
    copied once, not three times.
    """
    response = ModelInferResponse(model_name=served.model, model_version=str(served.version), id=request_id)
    if is_marked_final:
        response.parameters["triton_final_response"].bool_param = True
    contents: list[bytes | memoryview] = []
    for name, tensor in completed.outputs.items():
        response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.array.shape)
        content = tensor_bytes.buffer_of(tensor.array, tensor.datatype)
        contents += (field_head(_RAW_OUTPUTS, len(content)), content)
    return [response.SerializeToString(), *contents]


def axis_sizes(spec: TensorSpec) -> list[int]:
    """Gives a spec's shape as the protocol writes it: -1 for a free axis. A free rank becomes one free axis."""
    return [-1] if spec.shape is None else [axis if type(axis) is int else -1 for axis in spec.shape]


def _check_contents(request: ModelInferRequest) -> bool:
    """Tells whether the inputs are raw; raw and typed never come together."""
    raw_count = len(request.raw_input_contents)
    for tensor in request.inputs:
        if tensor.parameters:
            _check_parameters(f"input '{tensor.name[:MAX_NAME_CHARS]}'", tensor.parameters)
        # Converters leave `contents` there, and empty, beside raw ones: MLServer's with use_raw, Seldon's pipelines.
        if raw_count and tensor.HasField("contents") and tensor.contents.ListFields():
            name = tensor.name[:MAX_NAME_CHARS]
            text = f"input '{name}': expected no contents beside raw_input_contents, got both; send one of them"
            raise ServiceError(Reason.INVALID_INPUT, text)
    if raw_count and raw_count != len(request.inputs):
        text = f"expected one entry per input, {len(request.inputs)}, got {raw_count}"
        raise ServiceError(Reason.INVALID_INPUT, f"raw_input_contents: {text}")
    return raw_count > 0


def _check_parameters(what: str, parameters: Any) -> None:
    for name in UNSERVED_PARAMETERS:
        if name in parameters:
            raise ServiceError(Reason.INVALID_REQUEST, f"{what}: parameter '{name}' is not served here")


def _decode_typed(what: str, tensor: ModelInferRequest.InferInputTensor, room: ElementRoom) -> Tensor:
    field = CONTENTS_FIELDS.get(tensor.datatype)
    shape = tuple(tensor.shape)
    if field is None:
        if tensor.datatype in NUMPY_DTYPES:
            text = f"expected raw_input_contents for datatype {tensor.datatype}, got none"
            raise ServiceError(Reason.INVALID_INPUT, f"{what}: {text}")
        # An unknown datatype gets the same words whether its contents are raw or typed.
        return decode_raw(what, tensor.datatype, shape, b"", room=room)
    try:
        count = element_count("", shape)
        values = _elements(tensor.contents, field)
        if len(values) != count:
            raise ValueError(f"expected {count} elements for {shape_text(shape)} in {field}, got {len(values)}")
        array = _array(values, tensor.datatype)
        if tensor.datatype == BYTES:
            # On the wire the message was counted without a look at its characters.
            room.take(what, count, sum(map(len, array)))
            room.take_wide(what, array)
        return Tensor(tensor.datatype, array.reshape(shape))
    except ValueError as error:
        text = str(error).removeprefix("tensor '': ")
        raise ServiceError(Reason.INVALID_INPUT, f"{what}: {text}", tensor=what) from None


def _elements(contents: InferTensorContents, field: str) -> Any:
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise ValueError(f"expected its elements in {field}, got {descriptor.name}")
    return getattr(contents, field)


def _array(values: Any, datatype: str) -> Array:
    dtype = NUMPY_DTYPES[datatype]
    if datatype == BYTES:
        elements = np.empty(len(values), object)
        elements[:] = list(values)
        return elements
    if datatype not in ("INT8", "INT16", "UINT8", "UINT16"):
        return _numbers(values, dtype)
    wide = _numbers(values, np.dtype(np.int64))
    bounds = np.iinfo(dtype.str)
    outside = wide[(wide < bounds.min) | (wide > bounds.max)]
    if outside.size:
        raise ValueError(f"expected {bounds.min}..{bounds.max} for {datatype}, got {outside[0]}")
    return wide.astype(dtype)


def _numbers(values: Any, dtype: np.dtype[Any]) -> Array:
    numbers = np.empty(len(values), dtype)
    for begin in range(0, len(values), _AT_ONCE):
        numbers[begin : begin + _AT_ONCE] = values[begin : begin + _AT_ONCE]
    return numbers
