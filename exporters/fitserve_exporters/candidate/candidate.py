"""What is to become a version: a module with its signature, its task and the data that proves it.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import onnx
import torch
from torch import nn

from fitserve_contract.axis_ranges import AxisRange
from fitserve_contract.datatypes import datatype_of
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import Task
from fitserve_exporters.errors import ExportError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Arrays: TypeAlias = dict[str, Array]

EAGER_TORCH: Final = "eager torch on the CPU, as trained and in float64"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of the module, in the order of its forward.

    Args:
        name: Name in the exported model.
        dtype: Its elements; None for strings, BYTES in the version and an array of `bytes` objects here.
        shape: Size of each axis; a str names a free axis, and the first axis is one: the batch.
        ranges: Of the free axes beside the batch, as far as they are proved.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | str, ...]
    ranges: tuple[AxisRange, ...] = ()

    def to_tensor_spec(self) -> TensorSpec:
        """Gives the input as the manifest writes it."""
        return TensorSpec(self.name, datatype_of(numpy_dtype(self.dtype)), self.shape, ranges=self.ranges)


class Front(Protocol):
    """What the served graph computes in front of the module and torch cannot, such as codes of strings.

    Its answers are exact: integers, and real numbers rounded once. The module is proved behind it.
    """

    @property
    def module_inputs(self) -> tuple[InputSpec, ...]:
        """The module's inputs, in the order of its forward."""

    def encode(self, inputs: Arrays) -> Arrays:
        """Computes the module's inputs from those of the version, by name, (B, ...) each."""

    def probes(self, row: Arrays) -> Arrays:
        """Makes rows of the version's inputs that its graph has to be tried on, from one row (1, ...) of each."""

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Returns a model of the version's inputs, in order, made from one of the module's; that one may be changed."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Examples that training never saw.

    Args:
        inputs: Input name to (B, ...).
        labels: As the task says, (B, ...); None where there are none, and then no accuracy is claimed.
        source: What it is, for people.
        sha256: Hash of the data it was read from; empty where it was never in a file.
    """

    inputs: Mapping[str, Array]
    labels: Array | None
    source: str
    sha256: str = ""

    @property
    def example_count(self) -> int:
        """Number of examples."""
        return len(next(iter(self.inputs.values())))

    def rows(self, indices: Array) -> Arrays:
        """Picks the inputs of some examples."""
        return {name: array[indices] for name, array in self.inputs.items()}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an element of an output of ONNX Runtime may lie from float64.

    |onnxruntime - float64| <= max(factor * |torch - float64|, factor * rounding, rtol * |float64|, rtol * scale, atol)

    `rounding` (99 % quantile of |torch - float64|) and `scale` (root mean square of float64) are those of the element's
    own feature over the sample: an index of axis 1 of (B, C, H, W), of the last axis of any other shape. Masks such as
    -1e9 or the largest number, and infinities, take no part and must be torch's within 4 units in the last place.
    Integers, booleans and strings must be the same.

    Args:
        factor: Multiple of torch's own rounding error.
        atol: Least absolute tolerance of real numbers, in all features alike.
        rtol: Tolerance relative to the scale of the feature.
        reason: Why these.
        variant_loss: How much accuracy, macro-F1 or R² (by the task) a variant that rounds may lose, as a fraction.
        is_measured: Whether `atol` is the measured error of a variant that rounds; it then holds for integers too.
    """

    factor: float = 2.0
    atol: float = 0.0
    rtol: float = 1e-5
    reason: str = (
        "twice torch's own fp32 rounding error, as another order of the same sums may err as much again; never less "
        "than 1e-5 of the feature's scale, about 84 fp32 epsilons: a lucky torch result would make the bound vanish; "
        "per feature, as the largest value of an output says nothing about its small columns"
    )
    variant_loss: float = 0.005
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """All that an export starts from.

    Args:
        module: Eager; its forward takes the inputs in order and gives the outputs in order.
        inputs: At least one; those of the version.
        output_names: One per output.
        held_out: What it is verified on.
        task: What the outputs mean; None where nothing can be scored.
        training: How it was trained, for the manifest.
        tolerance: Of every output.
        seed: Of all sampling.
        extra_files: What the model is of no use without, by file name, such as its tokenizer; in the version.
        calibration: Inputs, name to (B, ...), that the ranges of a quantized model come from; never held-out ones.
        notes: What is served otherwise than the user's module returns it, one sentence each, for the manifest.
        allow_nan: Outputs that may be NaN in torch's own answers.
        allow_coupled_rows: Whether a module whose rows depend on each other is published, as not joinable.
        reference: What the module is, for people.
        front: What turns the inputs into those of the module; None where they are the same.

    Raises:
        ExportError: the parts do not fit each other.
    """

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    held_out: HeldOut
    task: Task | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Tolerance = field(default_factory=Tolerance)
    seed: int = 0
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    calibration: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    allow_nan: tuple[str, ...] = ()
    allow_coupled_rows: bool = False
    reference: str = EAGER_TORCH
    front: Front | None = None

    def __post_init__(self) -> None:
        if not self.inputs or not self.output_names:
            raise ExportError(
                f"export: expected inputs and outputs, got {len(self.inputs)} and {len(self.output_names)}"
            )
        _check_names([spec.name for spec in self.inputs] + list(self.output_names))
        _check_batch_axes(self.inputs)
        if self.task is not None and self.task.output not in self.output_names:
            raise ExportError(f"task: expected an output of {', '.join(self.output_names)}, got '{self.task.output}'")
        _check_held_out(self.inputs, self.held_out)
        unknown = sorted(set(self.allow_nan) - set(self.output_names))
        if unknown:
            raise ExportError(
                f"allow_nan: expected some of the outputs {', '.join(self.output_names)}, got {', '.join(unknown)}"
            )

    @property
    def module_inputs(self) -> tuple[InputSpec, ...]:
        """Inputs of the module, in the order of its forward."""
        return self.inputs if self.front is None else self.front.module_inputs

    def module_arrays(self, inputs: Arrays) -> Arrays:
        """Computes what the module gets for some inputs of the version."""
        return inputs if self.front is None else self.front.encode(inputs)


def numpy_dtype(dtype: torch.dtype | None) -> np.dtype[Any]:
    """Gives the numpy dtype of a torch dtype; that of objects for None, which stands for strings.

    Raises:
        ExportError: numpy has none (bfloat16, float8, complex variants).
    """
    if dtype is None:
        return np.dtype(object)
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise ExportError(f"inputs: expected a dtype that numpy has, got {dtype}") from None


def _check_names(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"input and output names: expected each once, got {', '.join(twice)} more often")
    if not all(names):
        raise ExportError("input and output names: expected no empty name")


def _check_batch_axes(inputs: tuple[InputSpec, ...]) -> None:
    first = {spec.name: spec.shape[0] if spec.shape else None for spec in inputs}
    for name, axis in first.items():
        if not isinstance(axis, str) or axis != next(iter(first.values())):
            raise ExportError(
                f"input '{name}': expected the batch as its first axis, got shape {_shape_of(name, inputs)}"
            )


def _shape_of(name: str, inputs: tuple[InputSpec, ...]) -> tuple[int | str, ...]:
    return next(spec.shape for spec in inputs if spec.name == name)


def _check_held_out(inputs: tuple[InputSpec, ...], held_out: HeldOut) -> None:
    expected = {spec.name for spec in inputs}
    if set(held_out.inputs) != expected:
        raise ExportError(f"held-out inputs: expected {sorted(expected)}, got {sorted(held_out.inputs)}")
    lengths = {name: len(array) for name, array in held_out.inputs.items()}
    if held_out.labels is not None:
        lengths["labels"] = len(held_out.labels)
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ExportError(f"held-out set: expected one number of examples, at least 1, got {lengths}")
    for spec in inputs:
        _check_array(spec, held_out.inputs[spec.name])


def _check_array(spec: InputSpec, array: Array) -> None:
    fits = array.ndim == len(spec.shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != numpy_dtype(spec.dtype):
        raise ExportError(
            f"held-out input '{spec.name}': expected {numpy_dtype(spec.dtype)} {spec.shape}, "
            f"got {array.dtype} {array.shape}"
        )
