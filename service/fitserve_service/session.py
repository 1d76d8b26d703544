"""ONNX Runtime: the one module that imports it.

A session is made from bytes, never from a path, so that what was checked is what runs; external data is handed over as
bytes too. It may be run from several threads at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime
from google.protobuf.internal import api_implementation

from fitserve_contract.datatypes import BF16, BYTES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_file import OnnxFacts
from fitserve_service.cuda_libraries import ask_driver, driver_problem, libraries_problem, load_failure
from fitserve_service.device_runs import GATE, DeviceRuns, Tools
from fitserve_service.placement import Placement, placement_of, placement_problem
from fitserve_service.run_errors import (
    GraphError,
    OperatorError,
    RunawayError,
    SessionError,
    is_of_runtime,
    load_error,
    run_error,
)
from fitserve_service.runtime.run_limit import RunLimit
from fitserve_service.runtime_values import array_of, fed, taken, tensor_spec, unserved
from fitserve_service.session_options import SessionOptions, cuda_options, has_kept_shapes, is_kept_size, settled
from fitserve_service.signature import Tensor, axis_conflict

__all__ = [
    "CPU_PROVIDER",
    "CUDA_PROVIDER",
    "LOWEST_VERSION",
    "FirstRun",
    "OperatorError",
    "RunLimit",
    "RunSwitch",
    "RunawayError",
    "Session",
    "SessionError",
    "SessionOptions",
    "check_runtime",
    "cuda_problem",
    "cuda_version",
    "device_kind",
    "preload_cuda",
    "provider_names",
    "runtime_version",
]

LOWEST_VERSION: Final = (1, 30, 1)
"""ONNX Runtime below this can be killed by a model or by a request's values."""

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"

_BFLOAT16_ONNX: Final = 16
"""TensorProto.DataType.BFLOAT16. Source: onnx/onnx.proto."""

_GPU: Final = "cuda"
"""What the runtime calls a GPU's memory."""

_RECORDS_PLACEMENT: Final = "session.record_ep_graph_assignment_info"

onnxruntime.set_default_logger_severity(4)


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


def cuda_version() -> str:
    """Tells which CUDA this ONNX Runtime was built for, for example "13.0"; empty where it was built without."""
    return str(getattr(onnxruntime, "cuda_version", None) or "")


def preload_cuda() -> None:
    """Loads CUDA's libraries from the packages that bring them, where no loader of shared objects would look."""
    # It prints what it does not find; what matters of that others tell.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls(directory="")


@functools.cache
def cuda_problem() -> str | None:
    """Tells why CUDA sessions cannot run here, naming the missing library and its package; None where they can."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider: install onnxruntime-gpu in place of onnxruntime"
    # The driver first: without one nothing of CUDA is loaded into a process that cannot use it.
    if problem := driver_problem(ask_driver(), cuda_version()):
        return problem
    preload_cuda()
    if problem := libraries_problem(cuda_version()):
        return problem
    failure = load_failure(str(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    hint = f"expected driver and libraries that fit CUDA {cuda_version()}; fitserve-serve doctor lists them"
    return f"{failure}: {hint}" if failure else None


def device_kind(device: str) -> str:
    """Tells where a session of a device runs here: "cpu" or "cuda"."""
    is_cuda = device.startswith("cuda") or (device == "auto" and cuda_problem() is None)
    return "cuda" if is_cuda else "cpu"


class FirstRun(NamedTuple):
    """The first run of one made-up row: the size of its free axes beside the batch, and how long it took, seconds."""

    free_axis_size: int
    run_s: float


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


class Session:
    """A loaded model. Owns the runtime's session; safe to run from several threads.

    Attributes:
        inputs: Inputs in the model's order; those with a default last.
        outputs: Outputs that are tensors, in the model's order.
        unserved: One line for each input or output that is no tensor and is left out, with the way to get one.
        provider: Execution provider that runs it, ONNX Runtime's name.
        placement: Which provider runs how many nodes; recorded on a GPU alone.
        has_loops: A run's time depends on the values: what runs short once may never end.
        first_run: As `warmup.first_run` found it; None before.
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
            SessionError: the runtime refuses the model, or the provider asked for is not there, or does not take all
                of it; a GraphError where only its runs cannot be captured as CUDA graphs.
        """
        missing = facts.external_files - set(external or {})
        if missing:
            raise SessionError(f"external data: expected file '{min(missing)[:128]}', found none")
        options = settled(options, facts)
        self._session = _open(model, options, external or {})
        self.provider: str = self._session.get_providers()[0]
        self.placement = _checked_placement(self._session, options)
        nodes = self._session.get_inputs(), self._session.get_overridable_initializers(), self._session.get_outputs()
        self.unserved = tuple(unserved(*nodes))
        required = [tensor_spec(node, facts.input_shapes, has_default=False) for node in nodes[0]]
        defaulted = [tensor_spec(node, facts.input_shapes, has_default=True) for node in nodes[1]]
        self.inputs = tuple(spec for spec in (*required, *defaulted) if spec is not None)
        outputs = [tensor_spec(node, facts.output_shapes, has_default=False) for node in nodes[2]]
        self.outputs = tuple(spec for spec in outputs if spec is not None)
        self.has_loops = facts.has_loops
        self.first_run: FirstRun | None = None
        self._has_bfloat16 = any(spec.datatype == BF16 for spec in (*self.inputs, *self.outputs))
        if self._has_bfloat16 and _has_texts(self.inputs):
            raise SessionError("inputs: expected no BYTES beside BF16: onnxruntime for Python cannot take both at once")
        self._datatypes = {spec.name: spec.datatype for spec in self.outputs}
        # Its wrapper would look for what no session of ours has (a graph of WebGPU, a fallback), at each run.
        self._run_natively = getattr(self._session, "_sess", self._session).run
        self._buckets = options.batch_size_buckets
        self._run_limit = options.run_limit_s, options.on_run
        self._device_runs = self._new_device_runs(options)
        # Functions, not methods of this object: a session that refers to itself outlives its last user.
        plain = Session._run if self._device_runs is None else Session._run_on_gpu
        # Texts that a model makes of numbers are counted before they become objects.
        has_new_texts = _has_texts(self.outputs) and not _has_texts(self.inputs)
        self._run_arrays = Session._run_ort_values if self._has_bfloat16 or has_new_texts else plain
        self._max_elements = options.max_elements

    def keep(self, inputs: Mapping[str, Tensor]) -> None:
        """Keeps buffers for inputs of these shapes on the GPU, where their batch size is one of the buckets.

        Args:
            inputs: Required inputs, with values that the model runs.

        Raises:
            OperatorError: an operator refused the values.
            GraphError: the run cannot be captured as a CUDA graph.
        """
        if self._device_runs is None or not has_kept_shapes(self.inputs, self.outputs):
            return
        if is_kept_size(self.inputs, [tensor.array.shape for tensor in inputs.values()], self._buckets):
            self._device_runs.keep({name: tensor.array for name, tensor in inputs.items()})

    def limit(self) -> RunLimit:
        """Returns a limit for runs before the model is READY."""
        return RunLimit(onnxruntime.RunOptions(), *self._run_limit)

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
            DeviceError: the GPU failed.
        """
        options = limit.options if limit else None
        clock = limit if isinstance(limit, RunLimit) else None
        if clock is not None:
            clock.begin(_row_count(inputs))
        try:
            arrays = self._run_arrays(self, inputs, output_names, options)
        except MemoryError:
            raise RunawayError("out of memory while running the model on these inputs") from None
        except Exception as error:
            if not is_of_runtime(error):
                raise
            is_ended = limit is not None and bool(limit.options.terminate)
            if clock is not None and is_ended:
                raise RunawayError(clock.problem()) from error
            said = run_error(error, is_ended=is_ended, is_on_gpu=self.provider == CUDA_PROVIDER)
            if type(said) is OperatorError and (conflict := axis_conflict(self.inputs, inputs)):
                said = OperatorError(f"{conflict}: {said}")
            raise said from error
        finally:
            if clock is not None:
                clock.end()
        pairs = zip(output_names, arrays, strict=True)
        return {name: Tensor(self._datatypes[name], taken(name, array, self._max_elements)) for name, array in pairs}

    def _run(self, inputs: Mapping[str, Tensor], output_names: Sequence[str], options: Any) -> Sequence[Any]:
        feed = {name: fed(name, tensor) for name, tensor in inputs.items()}
        return self._run_natively(output_names, feed, options)  # type: ignore[no-any-return]

    def _run_on_gpu(self, inputs: Mapping[str, Tensor], output_names: Sequence[str], options: Any) -> Sequence[Any]:
        assert self._device_runs is not None
        return self._device_runs.run(
            {name: fed(name, tensor) for name, tensor in inputs.items()}, output_names, options
        )

    def _run_ort_values(self, inputs: Mapping[str, Tensor], output_names: Sequence[str], options: Any) -> Sequence[Any]:
        feed = {name: _ort_value(tensor) for name, tensor in inputs.items()}
        with contextlib.nullcontext() if self._device_runs is None else GATE.together():
            values = self._session.run_with_ort_values(output_names, feed, options)
            pairs = zip(output_names, values, strict=True)
            return [array_of(name, value, self._max_elements) for name, value in pairs]

    def _new_device_runs(self, options: SessionOptions) -> DeviceRuns | None:
        if self.provider != CUDA_PROVIDER:
            return None
        if options.has_graphs and not has_kept_shapes(self.inputs, self.outputs):
            raise GraphError("CUDA graphs: expected numbers of fixed shapes behind the batch axis, got others")

        place, session = (_GPU, options.gpu_index), self._session

        def new_buffer(shape: Sequence[int], dtype: Any) -> Any:
            try:
                # From the session's arena: within its limit, and given back with it. Older runtimes have no such call.
                return session.create_ortvalue_from_shape_and_type(list(shape), dtype, *place)
            except (AttributeError, RuntimeError):
                return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, *place)

        names = [spec.name for spec in self.inputs if not spec.is_optional]
        tools = Tools(new_buffer, onnxruntime.RunOptions)
        return DeviceRuns(self._session, names, list(self._datatypes), tools, has_graphs=options.has_graphs)


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
    providers = _providers(options)
    is_on_gpu = providers[0] != CPU_PROVIDER
    if is_on_gpu:
        settings.add_session_config_entry(_RECORDS_PLACEMENT, "1")
    try:
        with GATE.loading() if is_on_gpu else contextlib.nullcontext():
            session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)
    except Exception as error:
        raise load_error(error, is_on_gpu=is_on_gpu) from error
    if options.device.startswith("cuda") and session.get_providers()[0] != CUDA_PROVIDER:
        raise SessionError(f"device '{options.device}': expected {CUDA_PROVIDER}, got {session.get_providers()[0]}")
    # It would keep the file's bytes for a fallback that is switched off: the weights a second time.
    session._model_bytes = None
    return session


def _providers(options: SessionOptions) -> list[Any]:
    device = options.device
    if device == "cpu":
        return [CPU_PROVIDER]
    problem = cuda_problem()
    if problem is None and options.gpu_index:
        problem = driver_problem(ask_driver(), cuda_version(), options.gpu_index) or None
    if problem is None:
        return [(CUDA_PROVIDER, cuda_options(options)), CPU_PROVIDER]
    if device == "auto":
        return [CPU_PROVIDER]
    raise SessionError(f"device '{device}': {problem}")


def _checked_placement(session: Any, options: SessionOptions) -> Placement:
    """Reads where the nodes are, and holds it against what the device asks for."""
    if session.get_providers()[0] != CUDA_PROVIDER:
        return Placement()
    placement = placement_of(session.get_provider_graph_assignment_info(), CUDA_PROVIDER)
    problem = placement_problem(placement, CUDA_PROVIDER, options.max_cpu_nodes)
    if problem and options.device.startswith("cuda"):
        raise SessionError(f"device '{options.device}': {problem}")
    return placement


def _has_texts(specs: Sequence[TensorSpec]) -> bool:
    return any(spec.datatype == BYTES for spec in specs)


def _row_count(inputs: Mapping[str, Tensor]) -> int:
    """Counts the rows of a run by its longest first axis, as a limit of its time takes them."""
    return max((tensor.array.shape[0] for tensor in inputs.values() if tensor.array.ndim), default=1)


def _ort_value(tensor: Tensor) -> Any:
    if tensor.datatype == BF16:
        # Not ascontiguousarray: it makes one axis out of none.
        bits = np.asarray(tensor.array, order="C")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16_ONNX)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.array)
