"""Inputs and outputs as an ONNX file declares them."""

from __future__ import annotations

import onnx
from onnx import helper

from fitserve_contract.datatypes import datatype_of
from fitserve_contract.manifest import TensorSpec
from fitserve_exporters.errors import ExportError


def output_specs(content: bytes) -> tuple[TensorSpec, ...]:
    """Gives the outputs of a serialized model.

    Raises:
        ExportError: an output is no tensor, or of elements that no datatype has.
    """
    return tuple(tensor_spec(value) for value in onnx.load_model_from_string(content).graph.output)


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Gives one input or output; raises as `output_specs`."""
    if value.type.WhichOneof("value") != "tensor_type":
        raise ExportError(f"'{value.name}': expected a tensor, got {value.type.WhichOneof('value')}")
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.BFLOAT16:
        datatype = "BF16"
    else:
        try:
            datatype = datatype_of(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (ValueError, KeyError) as error:
            raise ExportError(f"'{value.name}': no datatype for its elements: {error}") from error
    return TensorSpec(value.name, datatype, _shape(tensor))


def _shape(tensor: onnx.TypeProto.Tensor) -> tuple[int | str | None, ...] | None:
    if not tensor.HasField("shape"):
        return None
    # A size below 0 is what old exporters write for a free axis; the runtime reads it so too.
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else (axis.dim_param or None)
        for axis in tensor.shape.dim
    )
