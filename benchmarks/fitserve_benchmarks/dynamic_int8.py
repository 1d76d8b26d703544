"""The contestant beside int8 files: the same fp32 file quantized by ONNX Runtime's `quantize_dynamic`.

It is the fastest int8 on a CPU and no file of ours: one scale serves the whole batch, so that a row's answer depends on
its neighbours.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fitserve_benchmarks.contestants import Contestant, OnnxRuntimeContestant, Preparation
from fitserve_benchmarks.subject import Array, Batch, Subject

DYNAMIC_INT8: Final = "ONNX Runtime int8 dynamic"


class DynamicInt8Contestant:
    """The version's fp32 file with its layers fused as those of an int8 variant, quantized dynamically.

    Args:
        subject: Names the fp32 file.
        thread_count: Threads inside one operator.
    """

    def __init__(self, subject: Subject, thread_count: int) -> None:
        self._subject = subject
        self._thread_count = thread_count
        self._quantized: Contestant

    def prepare(self, batch: Batch) -> Preparation:
        """See Contestant. The time to quantize counts as none of loading."""
        with tempfile.TemporaryDirectory(prefix="fitserve-int8-") as folder:
            path = Path(folder, "dynamic.onnx")
            quantize_dynamically(self._subject.onnx_path, path)
            self._quantized = OnnxRuntimeContestant(self._subject, "cpu", self._thread_count, path)
            return self._quantized.prepare(batch)

    def run(self, batch: Batch) -> tuple[Array, ...]:
        """See Contestant."""
        return self._quantized.run(batch)


def quantize_dynamically(source: Path, target: Path) -> None:
    """Writes the fp32 model at `source` to `target`, its products in int8 with a scale for each column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from fitserve_exporters.variants_fusion import fuse_layers

    target.write_bytes(fuse_layers(source.read_bytes(), joins_weights=False))
    with _quiet():
        quantize_dynamic(
            target,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Behind a node of ONNX Runtime's own domain onnx infers no element: what is quantized is FP32.
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the quantizer's advice, which goes to the root logger, out of the benchmark's report."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
