"""Half-precision files for GPUs: weights and everything between inputs and outputs in FP16 or BF16.

Inputs and outputs stay FP32, so that callers need not know which file answers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fitserve_exporters.errors import VariantError

ELEMENTS: Final = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

_LARGEST_FP16: Final = float(np.finfo(np.float16).max)


def halve(content: bytes, variant: str) -> bytes:
    """Converts an fp32 model to half precision between casts.

    Args:
        content: Serialized model.
        variant: `fp16` or `bf16`.

    Raises:
        VariantError: a weight is beyond FP16's range, or the model has subgraphs.
    """
    model, element = onnx.load_model_from_string(content), ELEMENTS[variant]
    graph = model.graph
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        raise VariantError(f"{variant}: expected a graph without subgraphs, found one: its tensors cannot be converted")
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_halved(tensor, element, variant))
    for node in graph.node:
        _halve_attributes(node, element, variant)
    _cast_inputs(graph, element)
    _cast_outputs(graph)
    del graph.value_info[:]
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _halved(tensor: onnx.TensorProto, element: int, variant: str) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    finite = array[np.isfinite(array)]
    if element == TensorProto.FLOAT16 and finite.size and float(np.abs(finite).max()) > _LARGEST_FP16:
        largest = float(np.abs(finite).max())
        raise VariantError(
            f"{variant}: weight '{tensor.name}': expected at most {_LARGEST_FP16:g}, got {largest:g}: use bf16"
        )
    half = array.astype(helper.tensor_dtype_to_np_dtype(element))
    return numpy_helper.from_array(half, tensor.name)


def _halve_attributes(node: onnx.NodeProto, element: int, variant: str) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_halved(attribute.t, element, variant))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = element


def _cast_inputs(graph: onnx.GraphProto, element: int) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT or value.name in weights:
            continue
        inner = f"{value.name}.half"
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == value.name:
                    node.input[index] = inner
        graph.node.insert(0, helper.make_node("Cast", [value.name], [inner], to=element))


def _cast_outputs(graph: onnx.GraphProto) -> None:
    for value in graph.output:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        inner = f"{value.name}.half"
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value.name:
                        names[index] = inner
        graph.node.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT))
