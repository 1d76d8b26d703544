"""The contestants beside the usual ones: torch.compile's other modes, an AOTInductor package, ONNX Runtime with bound
memory and CUDA graphs, and the version's variants.

Shapes: B examples.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.contestants import (
    DEVICE_TO_DEVICE,
    ENTRIES,
    HOST_TO_HOST,
    Contestant,
    Entry,
    OnnxRuntimeContestant,
    Preparation,
    TorchContestant,
    fused_attention,
    placed_nodes,
    session_options,
    why_no_cuda_session,
    why_no_cuda_torch,
)
from fitserve_benchmarks.dynamic_int8 import DYNAMIC_INT8, DynamicInt8Contestant
from fitserve_benchmarks.subject import Array, Batch, Subject, SubjectError, VariantFile

ALL: Final = "all"


def all_entries(subject: Subject) -> tuple[Entry, ...]:
    """Lists everybody that there is for a subject: the usual, the further ones, and its variants."""
    variants = (entry for name, file in subject.variants.items() for entry in _variant_entries(name, file))
    return (*ENTRIES, *FURTHER, *variants)


def selected(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Picks contestants by name; the usual ones where no name is given, everybody for `all`.

    Raises:
        SubjectError: a name that nobody has.
    """
    unknown = sorted(set(names) - {entry.name for entry in entries} - {ALL})
    if unknown:
        known = ", ".join(dict.fromkeys(entry.name for entry in entries))
        raise SubjectError(f"contestants: expected some of {known}, or {ALL}; got '{unknown[0]}'")
    return [entry for entry in entries if ALL in names or entry.name in names or (not names and entry.is_usual)]


class PackagedContestant:
    """The module compiled ahead of time by AOTInductor into a package, loaded from it; for the batch's very shapes.

    Args:
        subject: With a module.
        device: `cpu` or `cuda`.
    """

    def __init__(self, subject: Subject, device: str) -> None:
        self._subject = subject
        self._device = device
        self._packaged: Callable[..., Any]

    def prepare(self, batch: Batch) -> Preparation:
        """See Contestant."""
        import torch
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        module = TorchContestant(self._subject, self._device)
        load_s = module.prepare(batch).load_s
        inputs = self._tensors(batch)
        begin_s = time.perf_counter()
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            tempfile.TemporaryDirectory(prefix="fitserve-aoti-") as folder,
        ):
            program = torch.export.export(module.module, tuple(inputs))
            package = aoti_compile_and_package(program, package_path=str(Path(folder, "model.pt2")))
            compiled_s = time.perf_counter()
            self._packaged = aoti_load_package(package)
        return Preparation(load_s + time.perf_counter() - compiled_s, compiled_s - begin_s)

    def run(self, batch: Batch) -> tuple[Array, ...]:
        """See Contestant."""
        import torch

        with torch.inference_mode():
            outputs = self._packaged(*self._tensors(batch))
        tensors = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return tuple(output.cpu().numpy() for output in tensors)

    def _tensors(self, batch: Batch) -> list[Any]:
        import torch

        return [torch.from_numpy(batch[spec.name]).to(self._device) for spec in self._subject.inputs]


class ResidentTorch(TorchContestant):
    """The module on CUDA with its inputs and outputs left there."""

    _resident: dict[int, list[Any]]

    def prepare(self, batch: Batch) -> Preparation:
        """See Contestant."""
        self._resident = {}
        return super().prepare(batch)

    def call(self, batch: Batch) -> None:
        """See ResidentContestant."""
        import torch

        with torch.inference_mode():
            if id(batch) not in self._resident:
                arrays = [batch[spec.name] for spec in self.subject.inputs]
                self._resident[id(batch)] = [torch.from_numpy(array).to("cuda") for array in arrays]
            self.forward(*self._resident[id(batch)])
        torch.cuda.synchronize()


@dataclass
class BoundContestant:
    """ONNX Runtime on CUDA with inputs and outputs bound to memory of the device.

    Args:
        subject: Names the file.
        thread_count: Threads on the host.
        has_graph: Captures a CUDA graph for the batch's very shapes, and replays it.
        path: A variant's file; None takes the version's own.
    """

    subject: Subject
    thread_count: int
    has_graph: bool = False
    path: Path | None = None
    _session: Any = field(init=False, default=None)
    _binding: Any = field(init=False, default=None)
    _inputs: dict[str, Any] = field(init=False, default_factory=dict)

    def prepare(self, batch: Batch) -> Preparation:
        """See Contestant.

        Raises:
            RuntimeError: the session does not run on CUDA.
        """
        import onnxruntime

        begin_s = time.perf_counter()
        # TF32 would round: the answers are held against fp32.
        options = {"use_tf32": "0", "enable_cuda_graph": "1" if self.has_graph else "0"}
        providers = [("CUDAExecutionProvider", options)]
        path = self.path or self.subject.onnx_path
        self._session = onnxruntime.InferenceSession(str(path), session_options(self.thread_count), providers=providers)
        load_s = time.perf_counter() - begin_s
        if (found := self._session.get_providers()[0]) != "CUDAExecutionProvider":
            raise RuntimeError(f"provider: expected CUDAExecutionProvider, got {found}")
        self._binding, self._inputs = self._bound(batch)
        self._session.run_with_iobinding(self._binding)  # the first run captures where there is a graph
        return Preparation(
            load_s, nodes=placed_nodes(self._session), fused_attention_count=fused_attention(self._session)
        )

    def run(self, batch: Batch) -> tuple[Array, ...]:
        """See Contestant. Inputs are copied to the addresses that are bound: a graph knows no others."""
        for name, value in self._inputs.items():
            value.update_inplace(batch[name])
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return tuple(self._binding.copy_outputs_to_cpu())

    def _bound(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        import onnxruntime

        binding, inputs = self._session.io_binding(), {}
        for spec in self.subject.inputs:
            inputs[spec.name] = onnxruntime.OrtValue.ortvalue_from_numpy(batch[spec.name], "cuda", 0)
            binding.bind_ortvalue_input(spec.name, inputs[spec.name])
        names = [output.name for output in self._session.get_outputs()]
        for name, array in zip(names, self._answers(batch, names), strict=True):
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        return binding, inputs

    def _answers(self, batch: Batch, names: list[str]) -> list[Array]:
        """Gives outputs of the right shapes: a session that captures graphs cannot run unbound."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(self.subject.onnx_path), providers=["CPUExecutionProvider"])
        answers: list[Array] = session.run(names, dict(batch))
        return answers


@dataclass
class ResidentBound(BoundContestant):
    """The same with a binding for each batch, so that a timed call copies nothing."""

    _bindings: dict[int, Any] = field(init=False, default_factory=dict)

    def call(self, batch: Batch) -> None:
        """See ResidentContestant."""
        if id(batch) not in self._bindings:
            self._bindings[id(batch)] = self._bound(batch)[0]
        binding = self._bindings[id(batch)]
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()


@dataclass
class ResidentGraph(BoundContestant):
    """A captured graph replayed on what its one binding holds: a graph knows no other addresses."""

    has_graph: bool = True

    def call(self, batch: Batch) -> None:  # noqa: ARG002
        """See ResidentContestant. The same inputs each time."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()


def _variant_entries(name: str, file: VariantFile) -> tuple[Entry, ...]:
    """Lists how a variant may take part: as the version's own file does, on CUDA with bound memory and graphs too."""
    plain = Entry(
        f"ONNX Runtime {name}",
        file.device,
        lambda subject, threads: OnnxRuntimeContestant(subject, file.device, threads, file.path),
        lambda _: why_no_cuda_session() if file.device == "cuda" else None,
        bound=file.bound,
    )
    if file.device != "cuda":
        dynamic = Entry(DYNAMIC_INT8, "cpu", DynamicInt8Contestant, lambda _: None, file.bound, is_usual=False)
        return (plain, dynamic) if name == "int8" else (plain,)
    bound = (
        _bound(f"{name} {what}", make, transfer)
        for what, make, transfer in (
            ("IO binding", lambda subject, count: BoundContestant(subject, count, path=file.path), HOST_TO_HOST),
            ("CUDA graph", lambda subject, count: BoundContestant(subject, count, True, file.path), HOST_TO_HOST),
            ("on the device", lambda subject, count: ResidentBound(subject, count, path=file.path), DEVICE_TO_DEVICE),
        )
    )
    return (plain, *(replace(entry, bound=file.bound) for entry in bound))


def _compiled(mode: str, device: str) -> Entry:
    return Entry(
        f"torch.compile {mode}",
        device,
        lambda subject, _: TorchContestant(subject, device, {"mode": mode}),
        _needs_module(device),
        is_usual=False,
    )


def _packaged(device: str) -> Entry:
    return Entry(
        "AOTInductor",
        device,
        lambda subject, _: PackagedContestant(subject, device),
        _needs_module(device),
        is_usual=False,
    )


def _bound(name: str, make: Callable[[Subject, int], Contestant], transfer: str = HOST_TO_HOST) -> Entry:
    why_not = why_no_cuda_session
    return Entry(f"ONNX Runtime {name}", "cuda", make, lambda _: why_not(), is_usual=False, transfer=transfer)


def _resident(name: str, options: Mapping[str, Any] | None) -> Entry:
    return Entry(
        f"{name} on the device",
        "cuda",
        lambda subject, _: ResidentTorch(subject, "cuda", options),
        _needs_module("cuda"),
        is_usual=False,
        transfer=DEVICE_TO_DEVICE,
    )


def _needs_module(device: str) -> Callable[[Subject], str | None]:
    def why_not(subject: Subject) -> str | None:
        if subject.module is None:
            return "needs the run directory that the version was exported from"
        return why_no_cuda_torch() if device == "cuda" else None

    return why_not


FURTHER: Final = (
    *(_compiled(mode, device) for device in ("cpu", "cuda") for mode in ("reduce-overhead", "max-autotune")),
    _packaged("cpu"),
    _packaged("cuda"),
    _bound("IO binding", lambda subject, threads: BoundContestant(subject, threads)),
    _bound("CUDA graph", lambda subject, threads: BoundContestant(subject, threads, has_graph=True)),
    _bound("on the device", lambda subject, threads: ResidentBound(subject, threads), DEVICE_TO_DEVICE),
    _bound("CUDA graph on the device", lambda subject, threads: ResidentGraph(subject, threads), DEVICE_TO_DEVICE),
    _resident("torch eager", None),
    _resident("torch.compile", {}),
    _resident("torch.compile reduce-overhead", {"mode": "reduce-overhead"}),
)
