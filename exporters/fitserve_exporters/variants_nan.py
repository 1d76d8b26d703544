"""NaN in a file with constant scales: QuantizeLinear writes a number in its place, and the fp32 file answers NaN.

Where it does, 0 · Σx of the example's input is added to its outputs: nothing for numbers, NaN for NaN and infinities.
Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fitserve_exporters.candidate.candidate import Arrays
from fitserve_exporters.sessions import CPU, OrtSession


def keep_nan(content: bytes, fp32: bytes, row: Arrays) -> bytes:
    """Lets a quantized file answer NaN where its fp32 file does.

    Args:
        content: Serialized quantized model.
        fp32: Serialized model that it was made from.
        row: Input name to (1, ...), an example that the model takes.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    sums: dict[str, str] = {}
    for output, inputs in _nan_paths(fp32, row).items():
        value = next(value for value in graph.output if value.name == output)
        for name in inputs:
            if name not in sums:
                sums[name] = _nothing(graph, name, row[name].ndim)
        _add_to_output(graph, value, [sums[name] for name in inputs])
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _nan_paths(fp32: bytes, row: Arrays) -> dict[str, list[str]]:
    """Finds the real inputs that make an output NaN, by output; a model may well have an answer to NaN."""
    session = OrtSession(fp32, CPU)
    paths: dict[str, list[str]] = {}
    for name, array in row.items():
        if array.dtype != np.float32:
            continue
        answers = session.run({**row, name: np.full_like(array, np.nan)})
        for output, answer in answers.items():
            if answer.dtype == np.float32 and answer.shape[:1] == (1,) and bool(np.isnan(answer).any()):
                paths.setdefault(output, []).append(name)
    return paths


def _nothing(graph: onnx.GraphProto, value: str, rank: int) -> str:
    """Writes 0 · Σx over all axes but the first of an input: (B,), 0 or NaN."""
    name = f"int8.{value}.nothing"
    product = name if rank == 1 else f"{name}.each"
    graph.initializer.append(helper.make_tensor(f"{name}.zero", TensorProto.FLOAT, [], [0.0]))
    graph.node.append(helper.make_node("Mul", [value, f"{name}.zero"], [product]))
    if rank > 1:
        graph.initializer.append(numpy_helper.from_array(np.arange(1, rank), f"{name}.axes"))
        graph.node.append(helper.make_node("ReduceSum", [product, f"{name}.axes"], [name], keepdims=0))
    return name


def _add_to_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, sums: Sequence[str]) -> None:
    rank, inner = len(value.type.tensor_type.shape.dim), f"int8.{value.name}.quantized"
    _rename(graph, value.name, inner)
    axes = numpy_helper.from_array(np.arange(1, rank), f"{inner}.axes")
    graph.initializer.append(axes)
    names = [inner]
    for index, name in enumerate(sums):
        names.append(f"{inner}.{index}")
        graph.node.append(helper.make_node("Unsqueeze", [name, axes.name], [names[-1]]))
    graph.node.append(helper.make_node("Sum", names, [value.name]))


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == before:
                    names[index] = after
