"""From an eager module to one ONNX file: torch.export, passes, checker."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import onnx
import torch
from onnx import TensorProto
from torch import nn

from fitserve_contract.joinability.proof import joining_text, prove_rows
from fitserve_exporters.candidate.candidate import Candidate
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.assumptions import Assumptions, read_assumptions
from fitserve_exporters.graph.names import graphs, name_ends
from fitserve_exporters.graph.passes import apply_passes
from fitserve_exporters.graph.quiet import quiet
from fitserve_exporters.graph.recurrent import translations
from fitserve_exporters.graph.tracing import free_axes, reason, traced_example, traced_program
from fitserve_exporters.texts import first_line

OPSET: Final = 18
"""The opset in which torch writes its operators: a higher one would only run a version converter over them."""

IR_VERSION: Final = 10
"""What belongs to opset 18 and later; onnxruntime reads it since 1.18, our floor 1.30.1 reads up to 13."""

LOWEST_ONNX: Final = (1, 21)
"""Below this, onnx reads external data from outside a model's folder."""

MAX_ONE_FILE_BYTES: Final = 2**31 - 1
"""A protobuf message ends there; larger weights would need files beside the model."""

_END: Final = "fitserve_exporters"
"""Inputs and outputs are called by it until the graph is finished: the caller's names may be those of its values."""

_REAL: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Initializers of other elements are shapes and axes, not parameters."""


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A graph, and what it takes for granted.

    Args:
        content: The serialized model: opset 18, IR version 10, free axes under their names.
        assumptions: Of the sizes of free axes.
    """

    content: bytes
    assumptions: Assumptions


def export_onnx(candidate: Candidate) -> bytes:
    """Exports a candidate's module as one ONNX file; see `export_graph`."""
    return export_graph(candidate).content


def export_graph(candidate: Candidate) -> ExportedGraph:
    """Exports a candidate's module as one ONNX file; the same weights give the same bytes.

    Raises:
        ExportError: torch cannot export the module (it says where), the result is over 2 GB or no valid ONNX, or the
                onnx that is installed is unsafe.
    """
    check_onnx()
    with quiet():
        program = traced_program(candidate)
        assumptions = read_assumptions(program, candidate, traced_example(candidate))
        model = _onnx_model(program, candidate)
    content: bytes = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"export: the result is no valid ONNX: {first_line(error)}") from error
    return ExportedGraph(content, assumptions)


def check_onnx() -> None:
    """Holds the installed onnx against the version below which it is unsafe. ExportError: it is older."""
    found = tuple(int(part) for part in re.findall(r"\d+", onnx.__version__)[:2])
    if found < LOWEST_ONNX:
        expected = ".".join(map(str, LOWEST_ONNX))
        raise ExportError(f"onnx: expected at least {expected}, got {onnx.__version__}")


def parameter_count(module: nn.Module) -> int:
    """Counts a module's parameters, which the graph does not tell from constants of its own; shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def describe(content: bytes) -> dict[str, Any]:
    """Returns the facts of an exported model for the manifest: opset, operators, whether its rows are independent."""
    model = onnx.load_model_from_string(content)
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "operators": dict(sorted(operators.items())),
        "node_count": len(model.graph.node),
        "parameter_count": sum(_element_count(t) for t in model.graph.initializer if t.data_type in _REAL),
        "bytes": len(content),
        "joining": joining_text(prove_rows(content).problem),
    }


def _onnx_model(program: torch.export.ExportedProgram, candidate: Candidate) -> onnx.ModelProto:
    try:
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[f"{_END}_input_{index}" for index in range(len(candidate.module_inputs))],
            output_names=[f"{_END}_output_{index}" for index in range(len(candidate.output_names))],
            dynamic_shapes=(free_axes(candidate),),  # gives the symbols of the exported program their names back
            custom_translation_table=translations(),
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            external_data=False,
        )
    except Exception as error:  # the converter raises types of its own private modules
        raise ExportError(f"export: no ONNX form of the exported program: {reason(error)}") from error
    assert exported is not None
    model = exported.model_proto
    if model.ByteSize() > MAX_ONE_FILE_BYTES:
        raise ExportError(f"export: expected a model of at most {MAX_ONE_FILE_BYTES} bytes, got {model.ByteSize()}")
    model = apply_passes(model)
    model.ir_version = IR_VERSION
    _check_signature(model, candidate)
    _check_elements(model)
    if candidate.front is not None:
        model = candidate.front.attach(model)
    name_ends(model, [spec.name for spec in candidate.inputs], candidate.output_names)
    return model


def _check_signature(model: onnx.ModelProto, candidate: Candidate) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    outputs = [value.name for value in model.graph.output]
    expected = len(candidate.module_inputs), len(candidate.output_names)
    if (len(inputs), len(outputs)) != expected or len({*inputs, *outputs}) < sum(expected):
        raise ExportError(
            f"export: expected {expected[0]} inputs and {expected[1]} outputs ({', '.join(candidate.output_names)}), "
            f"got {len(inputs)} and {len({*outputs} - {*inputs})} in the graph; a forward that returns an input, or "
            "one tensor twice, has to clone() it"
        )


def _check_elements(model: onnx.ModelProto) -> None:
    """Refuses bfloat16, in which ONNX Runtime computes next to nothing on a CPU."""
    for graph in graphs(model.graph):
        for node in graph.node:
            casts = [attribute.i for attribute in node.attribute if node.op_type == "Cast" and attribute.name == "to"]
            if TensorProto.BFLOAT16 in casts:
                raise ExportError(
                    f"export: node '{node.name}' casts to bfloat16, which ONNX Runtime does not compute in on a CPU; "
                    "leave the autocast and .bfloat16() out of forward: the weights stay as they are"
                )


def _element_count(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
