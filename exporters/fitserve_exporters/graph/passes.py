"""The passes that every exported graph goes through, in order, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import onnx
import onnxscript.optimizer

from fitserve_exporters.graph.names import graphs

Pass: TypeAlias = Callable[[onnx.ModelProto], onnx.ModelProto]


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


PASSES: tuple[Pass, ...] = (fold_and_prune, strip_provenance)


def apply_passes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Runs every pass in order; the argument may be changed."""
    for step in PASSES:
        model = step(model)
    return model


def _strip(graph: onnx.GraphProto) -> None:
    parts: list[Any] = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
