"""Opset, IR version and operators against what the installed runtime reads.

What it reads is tried, not looked up: a one-node model of each opset and IR version loads in under a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile, all_nodes
from fitserve_exporters.lint.trial import quiet_options

_OLDEST_GUARANTEED_OPSET: Final = 7
"""Source: ONNX Runtime, Versioning.md: "opset version 7 or above" is guaranteed to work."""

_PROBED_IR_VERSION: Final = 8
_PROBED_OPSET: Final = 13


def opset_findings(file: OnnxFile) -> Iterator[Finding]:
    """Holds opset and IR version against the runtime's."""
    opset = opset_of(file.model)
    if opset == 0:
        yield Finding(Level.ERROR, "opset", "expected an opset of the domain ai.onnx, found none")
    elif not _reads(opset, _PROBED_IR_VERSION):
        most = _highest(lambda version: _reads(version, _PROBED_IR_VERSION), opset)
        yield Finding(Level.ERROR, "opset", f"opset: expected at most {most}, as this runtime reads, got {opset}")
    elif opset < _OLDEST_GUARANTEED_OPSET:
        message = f"opset: expected at least {_OLDEST_GUARANTEED_OPSET}, as the runtime guarantees, got {opset}"
        yield Finding(Level.WARNING, "opset", message)
    if not _reads(_PROBED_OPSET, file.model.ir_version):
        most = _highest(lambda version: _reads(_PROBED_OPSET, version), file.model.ir_version)
        message = f"IR version: expected 1 to {most}, as this runtime reads, got {file.model.ir_version}"
        yield Finding(Level.ERROR, "opset", message)


def operator_findings(file: OnnxFile) -> Iterator[Finding]:
    """Looks for operators that the runtime does not have, or not in the model's opset."""
    own = {(function.domain, function.name) for function in file.model.functions}
    opset, seen = opset_of(file.model), set()
    for node in all_nodes(file.model):
        key = (_domain(node.domain), node.op_type)
        if key in seen or key in own or (node.domain, node.op_type) in own:
            continue
        seen.add(key)
        problem = _operator_problem(*key, opset)
        if problem:
            message = f"operator {node.op_type} of domain '{key[0] or 'ai.onnx'}' (node '{node.name}'): {problem}"
            yield Finding(Level.ERROR, "operators", message)


def opset_of(model: onnx.ModelProto) -> int:
    """Gives the opset of the domain ai.onnx; 0 where the model imports none."""
    return next((entry.version for entry in model.opset_import if not _domain(entry.domain)), 0)


def _operator_problem(domain: str, name: str, opset: int) -> str:
    since = _runtime_operators().get((domain, name))
    if since is None:
        return "expected one that the runtime has, it has none of this name"
    if not domain and opset < since:
        return f"expected opset {since} or later, got {opset}"
    return ""


@cache
def _runtime_operators() -> dict[tuple[str, str], int]:
    """Gives every operator that the runtime knows, (domain, name) to the first opset that has it."""
    found: dict[tuple[str, str], int] = {}
    for schema in native.get_all_operator_schema():
        key = (_domain(schema.domain), schema.name)
        found[key] = min(found.get(key, schema.since_version), schema.since_version)
    for schema in onnx.defs.get_all_schemas_with_history():
        key = (_domain(schema.domain), schema.name)
        if key in found:
            found[key] = min(found[key], schema.since_version)
    return found


@cache
def _reads(opset: int, ir_version: int) -> bool:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's exceptions share no base class below Exception
        return False
    return True


def _highest(is_read: Callable[[int], bool], below: int) -> int:
    return next((version for version in range(min(below, 64), 0, -1) if is_read(version)), 0)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
