"""Inputs and outputs that the server does not serve: sequences, maps, and elements that no datatype has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fitserve_contract.datatypes import BF16, BYTES
from fitserve_contract.onnx_types import datatype_of_type, is_optional_type, unserved_text
from fitserve_exporters.lint.findings import Finding, Level


def type_findings(session: Any) -> Iterator[Finding]:
    """Names what is left out or refused for its type, with the way to get tensors.

    Args:
        session: A loaded `onnxruntime.InferenceSession`.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    defaulted = session.get_overridable_initializers()
    for node in (*inputs, *defaulted):
        if datatype_of_type(node.type) is None:
            yield _finding(node, "input", can_be_left_out=node in defaulted or is_optional_type(node.type))
    missing = [node for node in outputs if datatype_of_type(node.type) is None]
    for node in missing:
        yield _finding(node, "output", can_be_left_out=len(missing) < len(outputs))
    datatypes = {datatype_of_type(node.type) for node in (*inputs, *defaulted)}
    if BYTES in datatypes and BF16 in datatypes | {datatype_of_type(node.type) for node in outputs}:
        message = "inputs: expected no string beside bfloat16, which onnxruntime for Python cannot take at once; "
        yield Finding(Level.ERROR, "types", f"{message}add a Cast node from FP32 to each bfloat16 one")


def _finding(node: Any, what: str, *, can_be_left_out: bool) -> Finding:
    level = Level.WARNING if can_be_left_out else Level.ERROR
    done = f"{what} '{node.name}' is left out" if can_be_left_out else f"{what} '{node.name}'"
    return Finding(level, "types", f"{done}: {unserved_text(node.type, what)}")
