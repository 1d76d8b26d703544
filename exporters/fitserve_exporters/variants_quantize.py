"""int8 files of models that convolve: constant scales for weights and activations, from calibration examples.

Shapes: B examples.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import onnx

from fitserve_exporters.candidate.candidate import Arrays, InputSpec, numpy_dtype
from fitserve_exporters.errors import VariantError
from fitserve_exporters.variants_nan import keep_nan

LEAST_CALIBRATION_EXAMPLES: Final = 32
"""Fewer do not show the range of an activation."""

MAX_CALIBRATION_EXAMPLES: Final = 512

_CALIBRATION_BATCH: Final = 32


def has_convolutions(content: bytes) -> bool:
    """Tells whether a serialized model convolves, and so has activations worth quantizing statically."""
    return any(node.op_type == "Conv" for node in onnx.load_model_from_string(content).graph.node)


def quantize_statically(content: bytes, calibration: Mapping[str, Any], inputs: tuple[InputSpec, ...]) -> bytes:
    """Quantizes weights and activations, whose ranges come from running the fp32 model on examples.

    Args:
        content: Serialized fp32 model.
        calibration: Input name to (B, ...), at least 32 examples that the model was not tested on.
        inputs: What the model takes.

    Raises:
        VariantError: too few examples, examples that do not fit, or a model that cannot be quantized.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    examples = checked_calibration(calibration, inputs)

    def quantize(source: Path, target: Path) -> None:
        quantize_static(
            source,
            target,
            _Examples(examples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )

    row = {name: array[:1] for name, array in examples.items()}
    return keep_nan(_quantized(content, quantize), content, row)


def checked_calibration(calibration: Mapping[str, Any], inputs: tuple[InputSpec, ...]) -> Arrays:
    """Holds a calibration set against the inputs; gives at most MAX_CALIBRATION_EXAMPLES of it.

    Raises:
        VariantError: it is too small or does not fit; the message says what to give.
    """
    if set(calibration) != {spec.name for spec in inputs}:
        raise VariantError(f"calibration set: expected inputs {[s.name for s in inputs]}, got {sorted(calibration)}")
    for spec in inputs:
        found = calibration[spec.name]
        sizes = zip(spec.shape[1:], found.shape[1:], strict=False)
        fits = found.ndim == len(spec.shape) and all(isinstance(axis, str) or axis == size for axis, size in sizes)
        if not fits or found.dtype != numpy_dtype(spec.dtype):
            expected = f"{numpy_dtype(spec.dtype)} {spec.shape}"
            raise VariantError(f"calibration input '{spec.name}': expected {expected}, got {found.dtype} {found.shape}")
    counts = {len(array) for array in calibration.values()}
    if len(counts) != 1 or min(counts) < LEAST_CALIBRATION_EXAMPLES:
        raise VariantError(
            f"calibration set: expected at least {LEAST_CALIBRATION_EXAMPLES} examples, the same number for every "
            f"input, got {' and '.join(map(str, sorted(counts)))}: give more training examples"
        )
    return {name: array[:MAX_CALIBRATION_EXAMPLES] for name, array in calibration.items()}


class _Examples:
    """Hands a calibration set out batch by batch, as ONNX Runtime's CalibrationDataReader."""

    def __init__(self, examples: Arrays) -> None:
        count = len(next(iter(examples.values())))
        starts = range(0, count, _CALIBRATION_BATCH)
        self._batches = iter(
            {name: array[start : start + _CALIBRATION_BATCH] for name, array in examples.items()} for start in starts
        )

    def get_next(self) -> Arrays | None:
        """Gives the next batch; None when there is none."""
        return next(self._batches, None)


def _quantized(content: bytes, quantize: Callable[[Path, Path], None]) -> bytes:
    model = onnx.load_model_from_string(content)
    # The exporter's inferred shapes do not know the nodes that quantization puts in, and it stops where both disagree.
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="fitserve-quantize-") as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        try:
            quantize(source, target)
        except Exception as error:  # the quantizer raises types of its own and plain ones alike
            raise VariantError(f"ONNX Runtime cannot quantize the model: {str(error).splitlines()[0][:300]}") from error
        made = onnx.load_model_from_string(target.read_bytes())
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise VariantError("int8: expected operators that ONNX Runtime can quantize, found none")
    check_constant_scales(made.graph)
    written: bytes = made.SerializeToString(deterministic=True)
    return written


def check_constant_scales(graph: onnx.GraphProto) -> None:
    """Refuses a scale that is computed from the batch: a row's answer would depend on its neighbours.

    Raises:
        VariantError: names the node.
    """
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        is_dynamic = node.op_type.startswith("Dynamic")
        if is_dynamic or (node.op_type == "QuantizeLinear" and not {*node.input[1:]} <= constants):
            raise VariantError(f"int8: expected constant scales, got computed ones at '{node.name}' ({node.op_type})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the quantizer's advice, which goes to the root logger, from the user: it is about files made otherwise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
