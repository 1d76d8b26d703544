"""From an eager module to one ONNX file: torch.export, passes, checker."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import onnx
import torch
from onnx import TensorProto
from torch import nn
from torch.export import Dim

from fitserve_contract.joinability.proof import joining_text, prove_rows
from fitserve_exporters.candidate.candidate import Arrays, Candidate
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.passes import apply_passes

OPSET: Final = 18
"""The opset in which torch writes its operators: a higher one would only run a version converter over them."""

IR_VERSION: Final = 10
"""What belongs to opset 18 and later; onnxruntime reads it since 1.18, our floor 1.30.1 reads up to 13."""

LOWEST_ONNX: Final = (1, 21)
"""Below this, onnx reads external data from outside a model's folder."""

MAX_ONE_FILE_BYTES: Final = 2**31 - 1
"""A protobuf message ends there; larger weights would need files beside the model."""

_TRACED_SIZE: Final = 2
"""torch.export takes an axis of size 0 or 1 for a constant."""

_REAL: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Initializers of other elements are shapes and axes, not parameters."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def export_onnx(candidate: Candidate) -> bytes:
    """Exports a candidate's module as one ONNX file; the same weights give the same bytes.

    Returns:
        The serialized model: opset 18, IR version 10, free axes under their names.

    Raises:
        ExportError: torch cannot export the module (it says where), the result is over 2 GB or no valid ONNX, or the
                onnx that is installed is unsafe.
    """
    check_onnx()
    module = on_cpu(candidate.module)
    with _quiet():
        program = _exported_program(module, candidate)
        model = _onnx_model(program, candidate)
    content: bytes = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"export: the result is no valid ONNX: {_first_line(error)}") from error
    return content


def check_onnx() -> None:
    """Holds the installed onnx against the version below which it is unsafe. ExportError: it is older."""
    found = tuple(int(part) for part in re.findall(r"\d+", onnx.__version__)[:2])
    if found < LOWEST_ONNX:
        expected = ".".join(map(str, LOWEST_ONNX))
        raise ExportError(f"onnx: expected at least {expected}, got {onnx.__version__}")


def on_cpu(module: nn.Module) -> nn.Module:
    """Gives a copy of a module in evaluation mode on the CPU; a module wrapped by torch.compile is unwrapped first."""
    eager = getattr(module, "_orig_mod", module)
    return copy.deepcopy(eager).cpu().eval().requires_grad_(False)


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


def _exported_program(module: nn.Module, candidate: Candidate) -> torch.export.ExportedProgram:
    # Any number of examples must do, while other axes may end somewhere (a position table): DYNAMIC finds out where.
    batch = Dim(str(candidate.inputs[0].shape[0]))
    shapes = tuple(dict.fromkeys(axes, Dim.DYNAMIC) | {0: batch} for axes in free_axes(candidate))
    example = tuple(torch.from_numpy(array) for array in traced_example(candidate).values())
    try:
        return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the module's own code and its tracer raise
        raise ExportError(f"export: torch.export cannot trace {type(module).__name__}: {_reason(error)}") from error


def _onnx_model(program: torch.export.ExportedProgram, candidate: Candidate) -> onnx.ModelProto:
    names = [spec.name for spec in candidate.inputs]
    try:
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=names,
            output_names=list(candidate.output_names),
            dynamic_shapes=free_axes(candidate),  # gives the symbols of the exported program their names back
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            external_data=False,
        )
    except Exception as error:  # the converter raises types of its own private modules
        raise ExportError(f"export: no ONNX form of the exported program: {_reason(error)}") from error
    assert exported is not None
    model = exported.model_proto
    if model.ByteSize() > MAX_ONE_FILE_BYTES:
        raise ExportError(f"export: expected a model of at most {MAX_ONE_FILE_BYTES} bytes, got {model.ByteSize()}")
    model = apply_passes(model)
    model.ir_version = IR_VERSION
    _check_signature(model, candidate)
    return model


def traced_example(candidate: Candidate) -> Arrays:
    """Gives the inputs that are traced: held-out rows, each free axis at least 2 long."""
    example = {}
    for spec in candidate.inputs:
        array = candidate.held_out.inputs[spec.name][:_TRACED_SIZE]
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and array.shape[axis] < _TRACED_SIZE:
                array = array.repeat(_TRACED_SIZE, axis)
        example[spec.name] = array
    return example


def free_axes(candidate: Candidate) -> tuple[dict[int, str], ...]:
    """Gives for each input its free axes and their names."""
    return tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in candidate.inputs
    )


def _check_signature(model: onnx.ModelProto, candidate: Candidate) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    expected = [spec.name for spec in candidate.inputs]
    outputs = [value.name for value in model.graph.output]
    if inputs != expected or outputs != list(candidate.output_names):
        raise ExportError(
            f"export: expected inputs {expected} and outputs {list(candidate.output_names)}, "
            f"got {inputs} and {outputs}; a forward that gives an input back, or one tensor twice, has to clone() it"
        )


def _element_count(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _reason(error: BaseException) -> str:
    """Finds the sentence of the innermost cause: the outer ones are advice on torch's own issue tracker."""
    while error.__cause__ is not None:
        error = error.__cause__
    hint = ""
    if "data-dependent" in str(error).lower():
        hint = "; a branch that depends on tensor values has to become torch.where or torch.cond"
    return f"{sentence(error)}{hint}"


def sentence(error: BaseException) -> str:
    """Writes an exception as its type and the line of its message that says what is wrong."""
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if lines and lines[0].startswith("Constraints violated"):  # what is violated stands in the second line
        lines = [line.removeprefix("- ") for line in lines[1:]]
    return (lines[0] if lines else "no message")[:400]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's own deprecations and advice on unused packages from the user: they are not about the model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
