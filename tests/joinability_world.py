"""Small ONNX models whose rows are independent or not: nodes written in a line, and one graph around them.

N is the free first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = TensorProto.FLOAT
I = TensorProto.INT64  # noqa: E741

Shape = Sequence[int | str | None]


def node(operator: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Names are separated by spaces; '-' is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, outputs.split(), domain=domain, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Shape] | None = None,
    constants: dict[str, Any] | None = None,
    opset: int = 20,
    outputs: str = "y",
    types: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> bytes:
    shapes = inputs or {"x": ("N", 4)}
    types = types or {}
    domains = [("", opset), ("com.microsoft", 1), ("ai.onnx.ml", 3), ("own", 1)]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, types.get(name, F), shape) for name, shape in shapes.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    return bytes(
        helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10).SerializeToString()
    )


def weights(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def body(nodes: Sequence[onnx.NodeProto], inputs: str, outputs: str) -> onnx.GraphProto:
    """The body of a branch or loop; names are separated by spaces."""
    given, made = ([onnx.ValueInfoProto(name=name) for name in names.split()] for names in (inputs, outputs))
    return helper.make_graph(list(nodes), "body", given, made)
