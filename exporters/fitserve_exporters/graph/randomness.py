"""Finds nodes that draw random numbers: what they add may be too small for the verification to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx

from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.names import graphs

_RANDOM: Final = ("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Multinomial", "Bernoulli")


def check_nothing_is_drawn(content: bytes) -> None:
    """Refuses a model that draws random numbers, in a subgraph or a function too. ExportError: names the node."""
    model = onnx.load_model_from_string(content)
    for node in _nodes(model):
        if node.op_type in _RANDOM and node.domain in ("", "ai.onnx"):
            raise ExportError(
                f"node '{node.name or node.output[0]}': expected the same answer to the same inputs, but it draws "
                f"random numbers ({node.op_type}); leave noise and dropout to training: if self.training: ..."
            )


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node
