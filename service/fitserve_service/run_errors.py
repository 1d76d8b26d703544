"""What goes wrong when a model is loaded or run: the runtime's errors in words that are fit for a caller."""

from __future__ import annotations

import re
from typing import Final

_RUNTIME_ERRORS: Final = "onnxruntime.capi.onnxruntime_pybind11_state"
"""Module of the errors that the runtime itself raises; any other in a run is a fault of ours."""

_PLAIN_ERROR = re.compile(r"^Error in execution: |onnxruntime|\b(CUDA|CUBLAS|CUDNN|CUFFT) failure")
"""What the runtime raises as a plain RuntimeError: where memory was bound, and where buffers are made and filled."""

_DEVICE_FAILURE = re.compile(r"\b(CUDA|CUBLAS|CUDNN|CUFFT) failure (\w+): ([^;]*)")
_NODE_ERROR = re.compile(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", re.DOTALL)
_NO_MEMORY = re.compile(
    r"bad alloc|bad_alloc|Failed to allocate memory|cannot allocate memory|out of memory"
    r"|Available memory of \d+ is smaller than|CUDA_ERROR_OUT_OF_MEMORY|(CUBLAS|CUDNN|CUFFT)\w*_ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
"""What the runtime says where memory is not to be had: an error like any other, but for its text."""
_SOURCE_PLACE = re.compile(r"\S*/\S+(:\d+)?")

_GPU_REMEDIES: Final = (
    "free memory on the GPU, raise --device-memory-limit-bytes where it is set, "
    "serve a smaller variant (--variant), or take a smaller max_batch_size"
)


class SessionError(Exception):
    """A model that ONNX Runtime cannot load, or a provider that is not there; the text is fit for a caller."""


class GraphError(SessionError):
    """A model whose runs cannot be captured as CUDA graphs; it may well run without."""


class OperatorError(Exception):
    """An operator that refused the values of a run; the text is fit for a caller."""


class RunawayError(OperatorError):
    """A run that took all the time it was given, or wanted more memory than there is; the text is fit for a caller."""


class TooManyElementsError(OperatorError):
    """A run whose outputs hold more BYTES elements than are written; the text is fit for a caller."""


class DeviceError(SessionError):
    """A GPU that failed: whatever the values were, it is no fault of theirs."""


class DeviceMemoryError(RunawayError):
    """A run for which the GPU had no memory left: not the fault of its values alone. The text is fit for a caller."""


def has_no_memory(text: str) -> bool:
    """Tells whether an error says that memory was not to be had."""
    return _NO_MEMORY.search(text) is not None


def is_of_runtime(error: Exception) -> bool:
    """Tells whether the runtime itself raised an error."""
    if type(error).__module__ == _RUNTIME_ERRORS:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and bool(_PLAIN_ERROR.search(text) or _NO_MEMORY.search(text))


def load_error(error: Exception, *, is_on_gpu: bool) -> SessionError:
    """Puts into words why the runtime refused a model."""
    text = str(error)
    if is_on_gpu and _NO_MEMORY.search(text):
        return SessionError(f"the GPU has no memory for the model ({_short(text)}): {_GPU_REMEDIES}")
    if "graph capture feature" in text:
        return GraphError(f"runs cannot be captured as CUDA graphs: {_short(text)}")
    if is_on_gpu and (failure := _DEVICE_FAILURE.search(text)):
        return DeviceError(_failure_text(failure))
    return SessionError(f"onnxruntime refused the model: {_short(text)}")


def run_error(error: Exception, *, is_ended: bool, is_on_gpu: bool) -> OperatorError | DeviceError:
    """Puts into words why the runtime ended a run.

    Args:
        error: Its own.
        is_ended: It was told to.
        is_on_gpu: The run was on a GPU, whose memory all models share.
    """
    text = str(error)
    has_no_memory = _NO_MEMORY.search(text) is not None
    if has_no_memory and is_on_gpu and not is_ended:
        return DeviceMemoryError(
            f"the GPU has no memory left for this run: send fewer examples at once, or {_GPU_REMEDIES}"
        )
    if is_on_gpu and not is_ended and (failure := _DEVICE_FAILURE.search(text)):
        return DeviceError(_failure_text(failure))
    if has_no_memory and not is_ended:
        return RunawayError(_memory_text(text))
    return (RunawayError if is_ended else OperatorError)(_operator_text(text))


def _failure_text(failure: re.Match[str]) -> str:
    return f"the GPU failed: {failure[1]} error {failure[2]}, {failure[3].strip()}"


def _memory_text(text: str) -> str:
    match = _NODE_ERROR.search(text)
    where = f" in operator {match[1]} (node '{match[2][:128]}')" if match else ""
    return f"out of memory{where} while running the model on these inputs: {_short(match[3] if match else text)}"


def _operator_text(text: str) -> str:
    match = _NODE_ERROR.search(text)
    if match is None:
        return f"the model cannot run these values: {_short(text)}"
    return f"operator {match[1]} (node '{match[2][:128]}') refused the values: {_short(match[3])}"


def _short(text: str) -> str:
    """The runtime's words without the places of its own sources, which mean nothing to a caller."""
    return _SOURCE_PLACE.sub("…", " ".join(text.split()))[:400]
