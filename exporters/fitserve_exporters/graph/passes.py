"""The passes that every exported graph goes through, in order, as data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
import onnxscript.optimizer
from onnx import TensorProto, numpy_helper

from fitserve_exporters.graph.names import graphs

Pass: TypeAlias = Callable[[onnx.ModelProto], onnx.ModelProto]

_REAL: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def fold_and_prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Folds constants, inlines functions, drops nodes and initializers that nothing reads."""
    optimized: onnx.ModelProto = onnxscript.optimizer.optimize(model)
    return optimized


def strip_provenance(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes stack traces and documentation of nodes.

    They name files of the exporting machine, are most of a small model's bytes, and differ between machines, so that
    the same weights would not give the same file.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        _strip(graph)
    return model


def mask_with_infinity(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns the smallest number into -inf where it masks the scores of an attention that mends NaN after the softmax.

    The converter writes a boolean mask so. A sum with that number loses the scores, and a query without any key would
    get the mean of all values; with -inf its weights are NaN, which become 0, as in torch.
    """
    for graph in graphs(model.graph):
        readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                readers[name].append(node)
        for node in graph.node:
            if node.op_type == "Constant" and _is_mask(node.output[0], readers):
                _put_infinity(node)
    return model


PASSES: tuple[Pass, ...] = (mask_with_infinity, fold_and_prune, strip_provenance)


def apply_passes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Runs every pass in order; the argument may be changed."""
    for step in PASSES:
        model = step(model)
    return model


def _is_mask(name: str, readers: Mapping[str, list[onnx.NodeProto]]) -> bool:
    """Tells whether a value is read as the second branch of masks alone: Where, Add, Softmax, IsNaN."""
    masks = readers[name]
    if not masks or any(mask.op_type != "Where" or mask.input[2] != name for mask in masks):
        return False
    sums = [node for mask in masks for node in readers[mask.output[0]]]
    weights = [node for one in sums for node in readers[one.output[0]]]
    mended = [any(node.op_type == "IsNaN" for node in readers[one.output[0]]) for one in weights]
    kinds = {node.op_type for node in sums}, {node.op_type for node in weights}
    return kinds == ({"Add"}, {"Softmax"}) and all(mended)


def _put_infinity(constant: onnx.NodeProto) -> None:
    for attribute in constant.attribute:
        if attribute.name == "value" and attribute.t.data_type in _REAL:
            value = numpy_helper.to_array(attribute.t)
            if value.ndim == 0 and value == np.finfo(value.dtype).min:
                attribute.t.CopyFrom(numpy_helper.from_array(np.full_like(value, -np.inf), attribute.t.name))


def _strip(graph: onnx.GraphProto) -> None:
    parts: list[Any] = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
