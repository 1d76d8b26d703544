"""ONNX Runtime: the one module that imports it.

A session is made from bytes, never from a path, so that what was checked is what runs; external data is handed over as
bytes too. It may be run from several threads at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from google.protobuf.internal import api_implementation

from fitserve_contract.datatypes import BF16, BYTES
from fitserve_contract.manifest import TensorSpec
from fitserve_service.onnx_file import OnnxFacts
from fitserve_service.signature import Tensor

LOWEST_VERSION: Final = (1, 30, 1)
"""ONNX Runtime below this can be killed by a model or by a request's values."""

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"

_CUDA_OPTIONS: Final = {"use_tf32": "0"}
"""TF32 rounds the factors of a product to 10 bits: its answers are not the fp32 ones that were verified."""

_BFLOAT16_ONNX: Final = 16
"""TensorProto.DataType.BFLOAT16. Source: onnx/onnx.proto."""

_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": BF16,
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}

_RUNTIME_ERRORS: Final = "onnxruntime.capi.onnxruntime_pybind11_state"
"""Module of the errors that the runtime itself raises; any other in a run is a fault of ours."""

_NODE_ERROR = re.compile(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", re.DOTALL)
_NO_MEMORY = re.compile(r"bad alloc|bad_alloc|Failed to allocate memory|cannot allocate memory", re.IGNORECASE)
"""What the runtime says where memory is not to be had: an error like any other, but for its text."""
_SOURCE_PLACE = re.compile(r"\S*/\S+(:\d+)?")

onnxruntime.set_default_logger_severity(4)


class SessionError(Exception):
    """A model that ONNX Runtime cannot load, or a provider that is not there; the text is fit for a caller."""


class OperatorError(Exception):
    """An operator that refused the values of a run; the text is fit for a caller."""


class RunawayError(OperatorError):
    """A run that took all the time it was given, or wanted more memory than there is; the text is fit for a caller."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session runs.

    Args:
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA where it works, else the CPU.
        intra_op_num_threads: Threads inside an operator, >= 1.
        saves_to: File that takes the model as it was optimized for this machine; None: it is not saved.
        is_optimized: The model is one that was saved so.
        entries: Further settings by ONNX Runtime's names.
    """

    device: str = "auto"
    intra_op_num_threads: int = 1
    saves_to: Path | None = None
    is_optimized: bool = False
    entries: Mapping[str, str] = field(default_factory=dict)


def check_runtime() -> None:
    """Holds what parses models and requests against what is safe: ONNX Runtime's version, protobuf's implementation.

    Raises:
        SessionError: the runtime is older; or protobuf is not on upb: the one in Python is no match for hostile input.
    """
    found = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:3])
    if found < LOWEST_VERSION:
        expected = ".".join(map(str, LOWEST_VERSION))
        raise SessionError(f"onnxruntime: expected at least {expected}, got {onnxruntime.__version__}")
    if (implementation := api_implementation.Type()) != "upb":
        hint = "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or install protobuf's wheel"
        raise SessionError(f"protobuf: expected its implementation upb, got {implementation}; {hint}")


def runtime_version() -> str:
    """Tells the version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def provider_names() -> tuple[str, ...]:
    """Lists the execution providers that are compiled in, ONNX Runtime's names, whether they work here or not."""
    return tuple(onnxruntime.get_available_providers())


@functools.cache
def cuda_problem() -> str | None:
    """Tells why CUDA sessions cannot run here, naming the missing library; None where they can."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider: install onnxruntime-gpu in place of onnxruntime"
    if _missing_library("libcuda.so.1"):
        return "libcuda.so.1 is missing: no NVIDIA driver is installed, or the container was started without it"
    # It prints what it does not find; what matters of that is told below.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    missing = _missing_library(str(provider))
    return f"{missing} is missing: pip install 'fitserve[cuda]', or a torch build for CUDA 13" if missing else None


def device_kind(device: str) -> str:
    """Tells where a session of a device runs here: "cpu" or "cuda"."""
    is_cuda = device.startswith("cuda") or (device == "auto" and cuda_problem() is None)
    return "cuda" if is_cuda else "cpu"


def _missing_library(library: str) -> str:
    """Names the library that keeps another from loading; empty where it loads."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return Path(str(error).split(":")[0]).name
    return ""


class RunSwitch:
    """Ends runs from outside, from any thread: a model may loop for ever, by the values of a request."""

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()

    @property
    def is_off(self) -> bool:
        """The runs were ended."""
        return bool(self.options.terminate)

    def turn_off(self) -> None:
        """Ends the run that is under way, at its next operator, and any later one."""
        self.options.terminate = True


class RunLimit:
    """A time after which runs are ended from outside: a model may loop for ever. A context manager around the runs."""

    def __init__(self, limit_s: float) -> None:
        self.options = onnxruntime.RunOptions()
        self._timer = threading.Timer(limit_s, setattr, (self.options, "terminate", True))
        self._timer.daemon = True

    def __enter__(self) -> RunLimit:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


class Session:
    """A loaded model. Owns the runtime's session; safe to run from several threads.

    Attributes:
        inputs: Inputs in the model's order; those with a default last.
        outputs: Outputs that are tensors, in the model's order.
        provider: Execution provider that runs it, ONNX Runtime's name.
        has_loops: A run's time depends on the values: what runs short once may never end.
    """

    def __init__(
        self, model: bytes, facts: OnnxFacts, options: SessionOptions, external: Mapping[str, bytes] | None = None
    ) -> None:
        """Loads a model.

        Args:
            model: Serialized ModelProto.
            facts: What `read_facts` read from it.
            options: How it runs.
            external: Contents of its external files by their relative path; must hold all of `facts.external_files`.

        Raises:
            SessionError: the runtime refuses the model, or the provider asked for is not there.
        """
        missing = facts.external_files - set(external or {})
        if missing:
            raise SessionError(f"external data: expected file '{min(missing)[:128]}', found none")
        self._session = _open(model, options, external or {})
        self.provider: str = self._session.get_providers()[0]
        required = [_spec(node, facts.input_shapes, False) for node in self._session.get_inputs()]
        defaulted = [_spec(node, facts.input_shapes, True) for node in self._session.get_overridable_initializers()]
        untensored = [node.name for node in self._session.get_inputs() if _datatype(node.type) is None]
        if untensored:
            raise SessionError(
                f"input '{untensored[0]}': expected a tensor, got a sequence, map or unknown element type"
            )
        self.inputs = tuple(spec for spec in (*required, *defaulted) if spec is not None)
        outputs = [_spec(node, facts.output_shapes, False) for node in self._session.get_outputs()]
        self.outputs = tuple(spec for spec in outputs if spec is not None)
        if not self.outputs:
            raise SessionError("outputs: expected at least one tensor, found none")
        self.has_loops = facts.has_loops
        self._has_bfloat16 = any(spec.datatype == BF16 for spec in (*self.inputs, *self.outputs))
        if self._has_bfloat16 and any(spec.datatype == BYTES for spec in self.inputs):
            raise SessionError("inputs: expected no BYTES beside BF16: onnxruntime for Python cannot take both at once")
        self._datatypes = {spec.name: spec.datatype for spec in self.outputs}

    def run(
        self, inputs: Mapping[str, Tensor], output_names: Sequence[str], limit: RunLimit | RunSwitch | None = None
    ) -> dict[str, Tensor]:
        """Runs the model once.

        Args:
            inputs: Input name to tensor, fitting the signature; BYTES elements are UTF-8 bytes.
            output_names: Outputs wanted.
            limit: Ends the run when its time is over, or when it is told to.

        Returns:
            Output name to tensor, in the order asked for.

        Raises:
            OperatorError: an operator refused the values.
            RunawayError: the limit ended the run, or its memory was not to be had.
        """
        options = limit.options if limit else None
        try:
            arrays = (self._run_ort_values if self._has_bfloat16 else self._run)(inputs, output_names, options)
        except MemoryError:
            raise RunawayError("the model wants more memory for these values than there is") from None
        except Exception as error:
            if type(error).__module__ != _RUNTIME_ERRORS:
                raise
            is_runaway = (limit and limit.options.terminate) or _NO_MEMORY.search(str(error))
            raise (RunawayError if is_runaway else OperatorError)(_operator_text(str(error))) from error
        pairs = zip(output_names, arrays, strict=True)
        return {name: Tensor(self._datatypes[name], _taken(name, array)) for name, array in pairs}

    def _run(self, inputs: Mapping[str, Tensor], output_names: Sequence[str], options: Any) -> Sequence[Any]:
        feed = {name: _fed(name, tensor) for name, tensor in inputs.items()}
        return self._session.run(output_names, feed, options)  # type: ignore[no-any-return]

    def _run_ort_values(self, inputs: Mapping[str, Tensor], output_names: Sequence[str], options: Any) -> Sequence[Any]:
        feed = {name: _ort_value(tensor) for name, tensor in inputs.items()}
        return [_from_ort_value(value) for value in self._session.run_with_ort_values(output_names, feed, options)]


def _open(model: bytes, options: SessionOptions, external: Mapping[str, bytes]) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_num_threads
    settings.inter_op_num_threads = 1
    # A thread that spins after a run takes the core that the next request needs.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in options.entries.items():
        settings.add_session_config_entry(key, value)
    if options.saves_to is not None:
        settings.optimized_model_filepath = str(options.saves_to)
    if options.is_optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if external:
        names = list(external)
        contents = [external[name] for name in names]
        settings.add_external_initializers_from_files_in_memory(names, contents, [len(part) for part in contents])
    providers = _providers(options.device)
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)
    except Exception as error:
        raise SessionError(f"onnxruntime refused the model: {_short(str(error))}") from error
    if options.device.startswith("cuda") and session.get_providers()[0] != CUDA_PROVIDER:
        raise SessionError(f"device '{options.device}': expected {CUDA_PROVIDER}, got {session.get_providers()[0]}")
    # It would keep the file's bytes for a fallback that is switched off: the weights a second time.
    session._model_bytes = None
    return session


def return_freed_memory() -> None:
    """Gives the system what loading has freed, which the allocator would keep: up to the size of a model."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return [CPU_PROVIDER]
    problem = cuda_problem()
    if problem is None:
        _, _, index = device.partition(":")
        return [(CUDA_PROVIDER, {"device_id": int(index or 0), **_CUDA_OPTIONS}), CPU_PROVIDER]
    if device == "auto":
        return [CPU_PROVIDER]
    raise SessionError(f"device '{device}': {problem}")


def _datatype(runtime_type: str) -> str | None:
    if runtime_type.startswith("optional(") and runtime_type.endswith(")"):
        runtime_type = runtime_type[len("optional(") : -1]
    return _DATATYPES.get(runtime_type)


def _spec(node: Any, shapes: Mapping[str, tuple[int | str | None, ...] | None], has_default: bool) -> TensorSpec | None:
    datatype = _datatype(node.type)
    if datatype is None:
        return None
    is_optional = has_default or node.type.startswith("optional(")
    # The runtime says [] for a scalar and for an open rank alike; the file tells them apart.
    shape = tuple(node.shape) if node.shape or node.name not in shapes else shapes[node.name]
    return TensorSpec(node.name, datatype, None if node.type.startswith("optional(") else shape, is_optional)


def _fed(name: str, tensor: Tensor) -> Any:
    return _strings(name, tensor.array) if tensor.datatype == BYTES else tensor.array


def _strings(name: str, array: Any) -> Any:
    """BYTES elements as str: the runtime's strings are UTF-8, and it would quote other bytes without a word."""
    strings = np.empty(array.size, object)
    for index, element in enumerate(array.reshape(-1)):
        try:
            strings[index] = element.decode()
        except UnicodeDecodeError:
            raise OperatorError(f"input '{name}': expected UTF-8 text, got other bytes in element {index}") from None
    return strings.reshape(array.shape)


def _taken(name: str, array: Any) -> Any:
    if array is None:
        raise OperatorError(f"output '{name}': expected a tensor, got none for these values")
    if array.dtype != object:
        return array
    taken = np.empty(array.size, object)
    taken[:] = [element.encode() if isinstance(element, str) else bytes(element) for element in array.reshape(-1)]
    return taken.reshape(array.shape)


def _ort_value(tensor: Tensor) -> Any:
    if tensor.datatype == BF16:
        # Not ascontiguousarray: it makes one axis out of none.
        bits = np.asarray(tensor.array, order="C")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16_ONNX)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.array)


def _from_ort_value(value: Any) -> Any:
    if not value.has_value():
        return None
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count == 0:
        return np.empty(shape, "<u2")
    if value.device_name() != "cpu":
        raise OperatorError("BF16 outputs on a GPU cannot be copied by this runtime: cast them to FP32 in the graph")
    bits = ctypes.string_at(value.data_ptr(), count * 2)
    return np.frombuffer(bits, "<u2").reshape(shape)


def _operator_text(text: str) -> str:
    match = _NODE_ERROR.search(text)
    if match is None:
        return f"the model cannot run these values: {_short(text)}"
    return f"operator {match[1]} (node '{match[2][:128]}') refused the values: {_short(match[3])}"


def _short(text: str) -> str:
    """The runtime's words without the places of its own sources, which mean nothing to a caller."""
    return _SOURCE_PLACE.sub("…", " ".join(text.split()))[:400]
