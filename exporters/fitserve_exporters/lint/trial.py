"""Loading and running a model that nobody vouches for, with made-up inputs and a time limit."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from fitserve_contract.onnx_types import datatype_of_type
from fitserve_exporters.candidate.candidate import Array, Arrays
from fitserve_exporters.lint.graphs import axis_size

_LIMIT_S: Final = 20.0
_FREE_AXIS_SIZE: Final = 8
"""Size of a free axis beside the batch; axes of one name are of one size."""


def quiet_options() -> Any:
    """Gives session options that log nothing and keep the nodes as the file has them, so that errors name them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def loaded(path: Path) -> Any:
    """Loads a file as the server would.

    Raises:
        Exception: ONNX Runtime's own, where it refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def reason(error: Exception) -> str:
    """Gives the first line of an ONNX Runtime message."""
    return str(error).strip().splitlines()[0][:400]


class Trial:
    """A loaded model that is run with made-up inputs. Not thread-safe.

    Args:
        model: External data is looked for in `folder`.
        folder: Where the file lies.

    Raises:
        Exception: ONNX Runtime's own, where it refuses the model.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        options = quiet_options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        content = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Arrays) -> Arrays:
        """Returns the outputs that are served tensors, by name; ends after the time limit with ONNX Runtime's error."""
        names = [output.name for output in self._session.get_outputs() if datatype_of_type(output.type) is not None]
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        timer = threading.Timer(_LIMIT_S, setattr, (options, "terminate", True))
        timer.start()
        try:
            answers: list[Array] = self._session.run(names, inputs, options)
        finally:
            timer.cancel()
        return dict(zip(names, answers, strict=True))


def made_up_inputs(values: Sequence[onnx.ValueInfoProto], batch_size: int) -> Arrays:
    """Makes inputs of the declared shapes, the first axis of each `batch_size` long; the same for the same arguments.

    Optional inputs are left out, as the server leaves them out when it tries a model.

    Raises:
        ValueError: an input is no tensor, or its rank is free.
    """
    return {value.name: _made_up(value, batch_size) for value in values if is_required(value)}


def is_required(value: onnx.ValueInfoProto) -> bool:
    """Tells whether callers have to send an input."""
    return bool(value.type.WhichOneof("value") != "optional_type")


def _made_up(value: onnx.ValueInfoProto, batch_size: int) -> Array:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        raise ValueError(f"input '{value.name}': expected a tensor of known rank")
    sizes = [_FREE_AXIS_SIZE if (size := axis_size(axis)) is None else size for axis in tensor.shape.dim]
    shape = (batch_size, *sizes[1:]) if sizes else ()
    if tensor.elem_type == onnx.TensorProto.STRING:
        return np.full(shape, "text", object)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    generator = np.random.default_rng(0)
    return generator.random(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)


def axis_sizes(values: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Gives the shape of every array; what is no array (a sequence, a map) is left out."""
    return {name: array.shape for name, array in values.items() if isinstance(array, np.ndarray)}
