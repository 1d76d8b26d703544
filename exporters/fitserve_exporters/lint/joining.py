"""Whether the server joins requests of different callers, by the proof and the trial that the server uses."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from fitserve_contract.datatypes import datatype_of
from fitserve_contract.joinability.proof import prove_rows
from fitserve_contract.joinability.trial import Rows, hostile_rows, trial_problem
from fitserve_exporters.candidate.candidate import Arrays
from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile, axis_size, graph_inputs
from fitserve_exporters.lint.trial import Trial, is_required, made_up_inputs, reason

_FORCED = "joinable = true in model.toml joins them all the same"


def joining_findings(file: OnnxFile) -> Iterator[Finding]:
    """Names the node that mixes rows, or says that requests are joined."""
    problem = prove_rows(file.path.read_bytes()).problem or _trial_problem(file)
    if problem:
        cure = f"; {_FORCED}" if _may_have_rows(file) else ""
        yield Finding(Level.WARNING, "joining", f"not joinable: {problem}; each request runs alone{cure}")
    else:
        yield Finding(
            Level.NOTE, "joining", "joinable: rows are proved independent, and were tried beside hostile ones"
        )


def _may_have_rows(file: OnnxFile) -> bool:
    """Tells whether the server lets `joinable` claim a batch axis; see the service's `claim_problem`."""
    shapes = [value.type.tensor_type.shape.dim for value in graph_inputs(file.model) if is_required(value)]
    return bool(shapes) and all(shape and axis_size(shape[0]) is None for shape in shapes)


def _trial_problem(file: OnnxFile) -> str:
    values = graph_inputs(file.model)
    try:
        trial, row = Trial(file.model, file.path.parent), made_up_inputs(values, 1)
        datatypes = {value.name: _datatype(value) for value in values if value.name in row}
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        return f"it could not be tried with made-up inputs: {reason(error)}"

    def run(rows: Rows) -> Arrays | None:
        try:
            return trial.run(dict(rows))
        except Exception:  # as above: the values are refused
            return None

    return trial_problem(run, [row, *hostile_rows(row, datatypes)])


def _datatype(value: onnx.ValueInfoProto) -> str:
    element_type = value.type.tensor_type.elem_type
    if element_type == onnx.TensorProto.BFLOAT16:
        return "BF16"
    return datatype_of(helper.tensor_dtype_to_np_dtype(element_type))
