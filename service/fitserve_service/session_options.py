"""How a session runs, and what of that the CUDA provider is told; none of it needs the runtime itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fitserve_contract.datatypes import BF16, BYTES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_file import OnnxFacts
from fitserve_service.runtime.run_limit import DEFAULT_RUN_LIMIT_S


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session runs.

    Args:
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA where it works, else the CPU.
        intra_op_num_threads: Threads inside an operator, >= 1.
        saves_to: File that takes the model as it was optimized for this machine; None: it is not saved.
        is_optimized: The model is one that was saved so.
        entries: Further settings by ONNX Runtime's names.
        max_cpu_nodes: On a device "cuda": nodes that the CUDA provider may leave to the CPU.
        batch_size_buckets: On a GPU: batch sizes whose buffers stay there once `Session.keep` has seen them.
        has_graphs: On a GPU: runs whose buffers stay there are captured as CUDA graphs.
        device_memory_limit_bytes: On a GPU: most memory that the session's arena takes there; 0: all that is free.
        run_limit_s: Seconds for each run of one row before the model is READY; larger ones have more.
        on_run: See `RunLimit`.
        max_elements: BYTES elements of one output; a run that gives more is refused. 0: none is.
    """

    device: str = "auto"
    intra_op_num_threads: int = 1
    saves_to: Path | None = None
    is_optimized: bool = False
    entries: Mapping[str, str] = field(default_factory=dict)
    max_cpu_nodes: int = 0
    batch_size_buckets: tuple[int, ...] = ()
    has_graphs: bool = True
    device_memory_limit_bytes: int = 0
    run_limit_s: float = DEFAULT_RUN_LIMIT_S
    on_run: Callable[[float], None] | None = None
    max_elements: int = 0

    @property
    def gpu_index(self) -> int:
        """Number of the GPU, for a device that is one."""
        _, _, index = self.device.partition(":")
        return int(index or 0)


def settled(options: SessionOptions, facts: OnnxFacts) -> SessionOptions:
    """Leaves CUDA graphs out where no run could be captured: shapes that never come again, or loops.

    Args:
        options: What is asked for.
        facts: What the model's file says.
    """
    is_fixed = all(_is_fixed(shape or (None,)) for shape in facts.input_shapes.values())
    can_capture = not facts.has_loops and (is_fixed or bool(options.batch_size_buckets))
    return replace(options, has_graphs=options.has_graphs and can_capture)


def cuda_options(options: SessionOptions) -> dict[str, str]:
    """Gives the CUDA provider's options. Source: ONNX Runtime's documentation of the CUDA execution provider."""
    told = {
        "device_id": str(options.gpu_index),
        # TF32 rounds the factors of a product to 10 bits: its answers are not the fp32 ones that were verified.
        "use_tf32": "0",
        # By default an arena grows in powers of two, and a GPU that several models share is full at half its size.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if options.device_memory_limit_bytes:
        told["gpu_mem_limit"] = str(options.device_memory_limit_bytes)
    if options.has_graphs:
        told["enable_cuda_graph"] = "1"
    elif not options.batch_size_buckets:
        # By default each new shape is searched for its fastest convolution, while the request that brought it waits.
        told["cudnn_conv_algo_search"] = "HEURISTIC"
    return told


def has_kept_shapes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Tells whether a model's shapes are known but for the first axis, so that buffers of few forms serve all runs.

    Args:
        inputs: Of the model; one that may be left out makes forms of its own, so that nothing is kept.
        outputs: Of the model.
    """
    specs = (*inputs, *outputs)
    are_numbers = all(spec.datatype not in (BF16, BYTES) and not spec.is_optional for spec in specs)
    return bool(inputs) and are_numbers and all(spec.shape is not None and _is_fixed(spec.shape[1:]) for spec in specs)


def is_kept_size(inputs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]], buckets: Sequence[int]) -> bool:
    """Tells whether buffers are kept for inputs of these shapes: of one of the buckets, or the only ones there are.

    Args:
        inputs: Of the model.
        shapes: Of a run's inputs.
        buckets: Batch sizes that runs are padded to.
    """
    if all(spec.shape is not None and _is_fixed(spec.shape) for spec in inputs):
        return True
    return {shape[:1] for shape in shapes} <= {(size,) for size in buckets}


def _is_fixed(axes: Sequence[int | str | None]) -> bool:
    return all(type(axis) is int for axis in axes)
