"""The checks, in the order in which they make sense: a file that cannot be trusted is not loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import onnx
from google.protobuf.message import DecodeError

from fitserve_exporters.lint.batch import batch_findings
from fitserve_exporters.lint.cuda import cuda_findings
from fitserve_exporters.lint.external import external_findings
from fitserve_exporters.lint.findings import Finding, Level, LintReport
from fitserve_exporters.lint.graphs import OnnxFile, graph_inputs, used_names
from fitserve_exporters.lint.joining import joining_findings
from fitserve_exporters.lint.operators import operator_findings, opset_findings
from fitserve_exporters.lint.sizes import size_findings
from fitserve_exporters.lint.trial import loaded, reason
from fitserve_exporters.lint.types import type_findings
from fitserve_exporters.lint.weights import weight_findings

Check: TypeAlias = Callable[[OnnxFile], Iterator[Finding]]


def lint(path: Path) -> LintReport:
    """Looks at an ONNX file, and loads and runs it in ONNX Runtime where that is safe.

    Args:
        path: The file; external data is looked for beside it.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError:
        size_bytes = path.stat().st_size
        return LintReport(path.name, (_error("file", f"expected an ONNX model, {size_bytes:,} bytes are none"),))
    if not model.HasField("graph"):
        return LintReport(path.name, (_error("file", "expected an ONNX model with a graph, found none"),))
    return LintReport(path.name, tuple(_findings(OnnxFile(model, path))))


def _findings(file: OnnxFile) -> Iterator[Finding]:
    has_error = False
    for stage in _STAGES:
        for check in stage:
            for finding in check(file):
                has_error = has_error or finding.level is Level.ERROR
                yield finding
        if has_error:
            return


def _checker_findings(file: OnnxFile) -> Iterator[Finding]:
    """Runs the ONNX checker; operators that it does not know are another check's.

    It refuses files that ONNX Runtime serves (outputs of open rank, for example), so whether it loads decides.
    """
    try:
        onnx.checker.check_model(str(file.path))
    except onnx.checker.ValidationError as error:
        text = str(error).strip().splitlines()[0]
        if "No Op registered" not in text and "No opset import" not in text:
            yield Finding(Level.WARNING, "checker", f"the ONNX checker refuses the file: {text[:400]}")


def _load_findings(file: OnnxFile) -> Iterator[Finding]:
    try:
        session = loaded(file.path)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        yield _error("load", f"ONNX Runtime refuses the model: {reason(error)}")
        return
    yield from type_findings(session)


def _input_findings(file: OnnxFile) -> Iterator[Finding]:
    used = used_names(file.model.graph)
    for value in graph_inputs(file.model):
        if value.name not in used:
            yield Finding(
                Level.WARNING, "inputs", f"input '{value.name}': nothing reads it, callers still have to send it"
            )


def _error(check: str, message: str) -> Finding:
    return Finding(Level.ERROR, check, message)


_STAGES: Final[tuple[tuple[Check, ...], ...]] = (
    (external_findings, opset_findings, operator_findings),
    (_checker_findings, weight_findings, _input_findings),
    (_load_findings,),
    (batch_findings, size_findings, joining_findings, cuda_findings),
)
"""A stage runs when those before it found no error: what comes later would only repeat it in other words."""
