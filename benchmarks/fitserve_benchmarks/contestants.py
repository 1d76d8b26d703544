"""Who takes part: each contestant takes numpy arrays and gives numpy arrays, so that every row is host to host.

A further contestant is one more entry of `ENTRIES`. Shapes: B examples.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from fitserve_benchmarks.subject import Array, Batch, Subject

if TYPE_CHECKING:
    import torch

HOST_TO_HOST: Final = "host to host"
DEVICE_TO_DEVICE: Final = "device to device"

REFERENCE: Final = "torch eager"
"""Whose fp32 answers on the CPU the others are held against, and whose times are the ratio's baseline."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What came before the first answer.

    Args:
        load_s: Building the module or the session on its device.
        compile_s: The call that compiles, that call's run included; None for what does not compile.
        nodes: Nodes of the optimized graph by execution provider; empty for what has no graph of nodes.
        fused_attention_count: Attention nodes among them that are one node each.
    """

    load_s: float
    compile_s: float | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)
    fused_attention_count: int = 0


class Contestant(Protocol):
    """One way to run the subject. Not thread-safe; owns what it loaded until it is dropped."""

    def prepare(self, batch: Batch) -> Preparation:
        """Loads, and compiles for this batch's shapes. Raises whatever the library raises."""
        ...

    def run(self, batch: Batch) -> tuple[Array, ...]:
        """Answers one batch, and returns once the answers are in host memory."""
        ...


@runtime_checkable
class ResidentContestant(Protocol):
    """One whose timed call leaves inputs and outputs on the device, device to device; `run` still gives the answers."""

    def call(self, batch: Batch) -> None:
        """Computes one batch, copied to the device at its first call, and returns once the device has done so."""
        ...


class TorchContestant:
    """The module itself, in eval and inference mode.

    Args:
        subject: With a module.
        device: `cpu` or `cuda`.
        compile_options: Keyword arguments of torch.compile; None runs eagerly. Shapes are static: it is compiled
            for each batch size anew, which is the best it can do there.
    """

    def __init__(self, subject: Subject, device: str, compile_options: Mapping[str, Any] | None = None) -> None:
        self.subject = subject
        self._device = device
        self._compile_options = compile_options
        self.module: torch.nn.Module
        self.forward: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

    def prepare(self, batch: Batch) -> Preparation:
        """See Contestant."""
        import torch

        started_s = time.perf_counter()
        module = copy.deepcopy(self.subject.module).to(self._device).eval()  # type: ignore[union-attr]
        self.module = self.forward = module
        loaded_s = time.perf_counter()
        if self._compile_options is None:
            return Preparation(loaded_s - started_s)
        self.forward = torch.compile(module, dynamic=False, **self._compile_options)
        self.run(batch)
        return Preparation(loaded_s - started_s, time.perf_counter() - loaded_s)

    def run(self, batch: Batch) -> tuple[Array, ...]:
        """See Contestant. Copying to the host waits for the device."""
        import torch

        with torch.inference_mode():
            tensors = [torch.from_numpy(batch[spec.name]).to(self._device) for spec in self.subject.inputs]
            outputs = self.forward(*tensors)
            if isinstance(outputs, torch.Tensor):
                return (outputs.cpu().numpy(),)
            return tuple(output.cpu().numpy() for output in outputs)


@dataclass
class OnnxRuntimeContestant:
    """The exported file in one ONNX Runtime session.

    Args:
        subject: Names the file.
        device: `cpu` or `cuda`.
        thread_count: Threads inside one operator.
        path: A variant's file; None takes the version's own.
    """

    subject: Subject
    device: str
    thread_count: int
    path: Path | None = None
    _session: Any = field(init=False, default=None)

    def prepare(self, batch: Batch) -> Preparation:  # noqa: ARG002
        """See Contestant.

        Raises:
            RuntimeError: the session runs on another provider than the device's.
        """
        import onnxruntime

        provider = _PROVIDERS[self.device]
        started_s = time.perf_counter()
        path = self.path or self.subject.onnx_path
        self._session = onnxruntime.InferenceSession(
            str(path), session_options(self.thread_count), providers=[(provider, _OPTIONS[self.device])]
        )
        load_s = time.perf_counter() - started_s
        if (found := self._session.get_providers()[0]) != provider:
            raise RuntimeError(f"provider: expected {provider}, got {found}")
        return Preparation(
            load_s, nodes=placed_nodes(self._session), fused_attention_count=fused_attention(self._session)
        )

    def run(self, batch: Batch) -> tuple[Array, ...]:
        """See Contestant."""
        return tuple(self._session.run(None, batch))


def session_options(thread_count: int) -> Any:
    """Makes the session options of every measured session.

    Its threads spin within a run, as by default, but not after it: there they would slow the contestant that is next.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    return options


def placed_nodes(session: Any) -> dict[str, int]:
    """Counts the nodes that each execution provider took of a session made with `session_options`."""
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def fused_attention(session: Any) -> int:
    """Counts a session's attention nodes that are one node each."""
    nodes = (node for part in session.get_provider_graph_assignment_info() for node in part.get_nodes())
    return sum(node.op_type in ATTENTION_OPERATORS for node in nodes)


ATTENTION_OPERATORS: Final = ("Attention", "MultiHeadAttention", "QAttention", "PackedMultiHeadAttention")

SPINNING: Final = "ONNX Runtime: within a run, stopped after it (session.force_spinning_stop=1); OpenMP: default"

_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# TF32 would round: the answers are held against fp32.
_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant that may take part.

    Args:
        name: As the tables print it.
        device: `cpu` or `cuda`.
        make: Makes it for a subject and a thread count; costs nothing yet.
        why_not: Says why it cannot take part here, None where it can.
        bound: How far a variant's answers may be off by its own record; None for what is not to round.
        is_usual: Takes part where no contestants are named.
        transfer: What a timed call holds.
    """

    name: str
    device: str
    make: Callable[[Subject, int], Contestant]
    why_not: Callable[[Subject], str | None]
    bound: float | None = None
    is_usual: bool = True
    transfer: str = HOST_TO_HOST


def _torch_entry(name: str, device: str, compile_options: Mapping[str, Any] | None = None) -> Entry:
    def why_not(subject: Subject) -> str | None:
        if subject.module is None:
            return "needs the run directory that the version was exported from"
        return why_no_cuda_torch() if device == "cuda" else None

    return Entry(name, device, lambda subject, _: TorchContestant(subject, device, compile_options), why_not)


def _onnxruntime_entry(device: str) -> Entry:
    def why_not(_: Subject) -> str | None:
        return why_no_cuda_session() if device == "cuda" else None

    return Entry(
        "ONNX Runtime", device, lambda subject, threads: OnnxRuntimeContestant(subject, device, threads), why_not
    )


def why_no_cuda_torch() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def why_no_cuda_session() -> str | None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider"
    if importlib.util.find_spec("torch") is not None and (reason := why_no_cuda_torch()):
        return reason
    onnxruntime.preload_dlls()
    return None


ENTRIES: Final = (
    _torch_entry(REFERENCE, "cpu"),
    _torch_entry("torch.compile", "cpu", {}),
    _onnxruntime_entry("cpu"),
    _torch_entry(REFERENCE, "cuda"),
    _torch_entry("torch.compile", "cuda", {}),
    _onnxruntime_entry("cuda"),
)
"""Everybody, in the order of the tables. The first that takes part is the reference."""
