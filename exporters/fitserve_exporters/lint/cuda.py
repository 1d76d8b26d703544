"""Which nodes the CUDA provider leaves to the CPU: each costs copies between the two."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
import onnxruntime

from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile, axis_size, graph_inputs
from fitserve_exporters.lint.trial import made_up_inputs, reason
from fitserve_exporters.sessions import CPU, CUDA, can_use_cuda

_TRIED_SIZE: Final = 2


def cuda_findings(file: OnnxFile) -> Iterator[Finding]:
    """Runs the model on the CUDA provider, where there is one, and names the operators that it left to the CPU."""
    if not can_use_cuda():
        yield Finding(Level.NOTE, "cuda", "operators of the CUDA provider: not looked at, it does not work here")
        return
    try:
        placed = placements(file, CUDA)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        yield Finding(Level.WARNING, "cuda", f"the CUDA provider cannot run the model: {reason(error)}")
        return
    left = sorted({operator for operator, provider in placed if provider != CUDA})
    if left:
        yield Finding(Level.WARNING, "cuda", f"operators that the CUDA provider leaves to the CPU: {', '.join(left)}")


def placements(file: OnnxFile, provider: str) -> set[tuple[str, str]]:
    """Runs a file once under ONNX Runtime's profiler; gives (operator, execution provider) of every node that ran.

    Raises:
        Exception: ONNX Runtime's own, where it refuses the model or the made-up inputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(file.path), options, providers=list(dict.fromkeys((provider, CPU))))
        try:
            session.run(None, made_up_inputs(graph_inputs(file.model), _batch_size(file.model)))
        finally:
            profile = session.end_profiling()
        events = json.loads(Path(profile).read_text())
    arguments = [event["args"] for event in events if event.get("cat") == "Node" and "args" in event]
    return {(entry["op_name"], entry["provider"]) for entry in arguments if "provider" in entry}


def _batch_size(model: onnx.ModelProto) -> int:
    shapes = [value.type.tensor_type.shape.dim for value in graph_inputs(model)]
    fixed = [size for axes in shapes if axes and (size := axis_size(axes[0])) is not None]
    return fixed[0] if fixed else _TRIED_SIZE
