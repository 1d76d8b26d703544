"""Walks over an ONNX model, subgraphs and functions included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A parsed file; the content of external tensors is still outside of it."""

    model: onnx.ModelProto
    path: Path


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Gives the inputs that a caller sends: those that no initializer fills."""
    filled = {tensor.name for tensor in model.graph.initializer}
    filled |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in filled]


def axis_size(axis: onnx.TensorShapeProto.Dimension) -> int | None:
    """Returns the size that an axis is fixed to; None for a free one, which old exporters write as -1."""
    return axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else None


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Gives every node of the graph, of its subgraphs and of the model's functions."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Gives every constant tensor: initializers and attributes, also those of subgraphs and functions."""
    yield from _initializers(model.graph)
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def used_names(graph: onnx.GraphProto) -> set[str]:
    """Gives the names of all values that a node of the graph or of its subgraphs reads, or that are outputs."""
    read = {name for node in _nodes(graph.node) for name in node.input}
    inner = {value.name for node in _nodes(graph.node) for sub in _subgraphs(node) for value in sub.output}
    return read | inner | {value.name for value in graph.output}


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for graph in _subgraphs(node):
            yield from _nodes(graph.node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
        yield from _initializers(graph)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
