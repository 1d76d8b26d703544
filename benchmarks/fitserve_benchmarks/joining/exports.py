"""Serialized models of torch modules, by torch's two exporters, quantized or not: as people have them.

Every free axis but the first has a name that starts with "s"; the first one is called N.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

ROWS: Final = "N"
_TRACED: Final = 3

FreeAxes = Mapping[int, Mapping[int, str]]
"""Place of the input to axis to name, beside the rows'."""


def by_dynamo(
    module: nn.Module, example: Sequence[Tensor], names: Sequence[str], free: FreeAxes | None = None
) -> bytes:
    """Exports by torch.export.

    Args:
        module: Its forward takes the example.
        example: Each (1 or more, ...).
        names: Of the inputs.
        free: Further free axes.
    """
    shapes = tuple({0: ROWS, **(free or {}).get(place, {})} for place in range(len(example)))
    with _quiet():
        program = torch.onnx.export(
            module.eval(), _traced(example), dynamo=True, input_names=list(names), verbose=False,
            dynamic_shapes=shapes, external_data=False,
        )  # fmt: skip
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def by_script(
    module: nn.Module,
    example: Sequence[Tensor],
    names: Sequence[str],
    free: FreeAxes | None = None,
    *,
    opset: int = 13,
    outputs: Sequence[str] = ("y",),
    is_training: bool = False,
) -> bytes:
    """Exports by TorchScript's tracer, as most files of today were; without folding where the module trains."""
    axes: dict[str, dict[int, str]] = {
        name: {0: ROWS, **(free or {}).get(place, {})} for place, name in enumerate(names)
    }
    axes |= {name: {0: ROWS} for name in outputs}
    target: Any = io.BytesIO()  # torch takes one, though its types say otherwise
    mode = torch.onnx.TrainingMode.TRAINING if is_training else torch.onnx.TrainingMode.EVAL
    with _quiet():
        torch.onnx.export(
            module.train(is_training), _traced(example), target, dynamo=False, opset_version=opset, training=mode,
            input_names=list(names), output_names=list(outputs), dynamic_axes=axes,
            do_constant_folding=not is_training,
        )  # fmt: skip
    return bytes(target.getvalue())


def quantized_dynamically(content: bytes, operators: Sequence[str]) -> bytes:
    """Quantizes by onnxruntime's quantize_dynamic: one scale of the activations for the whole batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _by_files(
        content,
        lambda source, target: quantize_dynamic(
            source, target, op_types_to_quantize=list(operators), weight_type=QuantType.QUInt8
        ),
    )


def quantized_statically(content: bytes, name: str, shape: Sequence[int], *, is_qdq: bool = True) -> bytes:
    """Quantizes by onnxruntime's quantize_static, calibrated on noise, in QDQ or in operator form."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self._feeds = iter([{name: random.standard_normal((2, *shape)).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    form = QuantFormat.QDQ if is_qdq else QuantFormat.QOperator
    return _by_files(
        content, lambda source, target: quantize_static(source, target, Noise(), quant_format=form, per_channel=is_qdq)
    )


def _by_files(content: bytes, quantize: Callable[[Path, Path], None]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="fitserve-joining-") as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(content)
        quantize(source, target)
        return target.read_bytes()


def _traced(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.cat([tensor[:1]] * _TRACED) for tensor in example)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' advice from the table."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
