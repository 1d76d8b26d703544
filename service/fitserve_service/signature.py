"""What goes into a model and what comes out, and whether a request fits it.

Shapes: B is the batch axis, the first axis of every input and output of a model that has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fitserve_contract.axis_ranges import AxisRange
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_types import axis_name
from fitserve_contract.tensor_bytes import Array, shape_text
from fitserve_service.errors import Reason, ServiceError


class Tensor(NamedTuple):
    """An array with its datatype, which numpy alone cannot say for BF16 (uint16 bit patterns)."""

    datatype: str
    array: Array


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model version.

    Args:
        inputs: In the model's order.
        outputs: In the model's order.
        has_batch_axis: The first axis counts examples, and rows do not depend on each other: requests may be joined.
        row_limit: Most rows in one request, where `max_batch_size` in model.toml sets it; 0: none.
        max_answer_bytes: Larger answers are refused; 0: none is.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    has_batch_axis: bool
    row_limit: int = 0
    max_answer_bytes: int = 0

    def check(self, inputs: Mapping[str, Tensor]) -> int:
        """Checks a request's inputs against the signature.

        Axes of one name may differ: ONNX Runtime does not compare them, and exporters write "?" or one symbol for axes
        that have nothing to do with each other. A run that fails names them; see `axis_conflict`.

        Args:
            inputs: Input name to tensor.

        Returns:
            The number of examples; 1 where there is no batch axis.

        Raises:
            ServiceError: INVALID_INPUT; names the tensor, what was expected and what was found.
        """
        found = 0
        for spec in self.inputs:
            tensor = inputs.get(spec.name)
            if tensor is None:
                if not spec.is_optional:
                    raise _invalid(spec.name, f"expected {_spec_text(spec)}, got no such tensor")
                continue
            found += 1
            if tensor.datatype != spec.datatype:
                raise _invalid(spec.name, f"expected datatype {spec.datatype}, got {tensor.datatype}")
            _check_shape(spec, tensor.array.shape)
        if found != len(inputs):
            raise self._unknown_input(inputs)
        for spec in self.inputs:
            if spec.ranges and spec.name in inputs:
                _check_ranges(spec, inputs)
        return self._example_count(inputs) if self.has_batch_axis else 1

    def check_outputs(self, names: Sequence[str]) -> tuple[str, ...]:
        """Holds the outputs asked for against the signature.

        Returns:
            `names`; all outputs where it is empty.

        Raises:
            ServiceError: INVALID_OUTPUT; a name is unknown or given twice.
        """
        if not names:
            return tuple(spec.name for spec in self.outputs)
        known = {spec.name for spec in self.outputs}
        for index, name in enumerate(names):
            if name not in known:
                text = f"output '{name[:128]}': expected one of {', '.join(sorted(known))}"
                raise ServiceError(Reason.INVALID_OUTPUT, text, output=name[:128])
            if name in names[:index]:
                raise ServiceError(
                    Reason.INVALID_OUTPUT, f"output '{name}': expected it once, got it twice", output=name
                )
        return tuple(names)

    def _example_count(self, inputs: Mapping[str, Tensor]) -> int:
        required = [spec.name for spec in self.inputs if not spec.is_optional]
        count = -1
        for name in required:
            shape = inputs[name].array.shape
            if not shape:
                raise _invalid(name, "expected a first axis that counts examples, got a scalar")
            size = shape[0]
            if count < 0:
                count = size
            elif size != count:
                text = f"expected {count} examples on the first axis as in input '{required[0]}', got {size}"
                raise _invalid(name, text)
        return count

    def _unknown_input(self, inputs: Mapping[str, Tensor]) -> ServiceError:
        known = [spec.name for spec in self.inputs]
        name = next(name for name in inputs if name not in known)
        return _invalid(name, f"expected one of {', '.join(known) or 'no inputs at all'}, got an unknown name")


def axis_conflict(specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor]) -> str:
    """Names the first two axes of one name but different sizes; empty where there are none.

    Args:
        specs: The model's inputs.
        inputs: Input name to tensor, fitting the signature.
    """
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        tensor = inputs.get(spec.name)
        if tensor is None or spec.shape is None:
            continue
        for size, axis in zip(tensor.array.shape, spec.shape, strict=False):
            if (name := axis_name(axis)) is None:
                continue
            before, where = seen.setdefault(name, (size, spec.name))
            if before != size:
                of = "before" if where == spec.name else f"in input '{where}'"
                shape = shape_text(tensor.array.shape)
                return f"input '{spec.name}': expected {before} for axis {axis}, as {of}, got shape {shape}"
    return ""


def _check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    if spec.shape is None:
        return
    if not spec.shape and shape and math.prod(shape) == 1:
        # ONNX Runtime does not look at the rank of a scalar, and clients without scalars send (1,).
        return
    if len(shape) != len(spec.shape):
        raise _invalid(spec.name, f"expected shape {shape_text(spec.shape)}, got {shape_text(shape)}")
    for size, expected in zip(shape, spec.shape, strict=True):
        if type(expected) is int and size != expected:
            raise _invalid(spec.name, f"expected shape {shape_text(spec.shape)}, got {shape_text(shape)}")


def _check_ranges(spec: TensorSpec, inputs: Mapping[str, Tensor]) -> None:
    """Checks the sizes of free axes against those that the version was proved at."""
    shape = inputs[spec.name].array.shape
    for one in spec.ranges:
        size = shape[one.axis]
        if problem := one.problem(size):
            raise _invalid(spec.name, f"axis {one.axis} ('{_axis_text(spec, one)}'): {problem}")
        if one.same_as is not None and (other := inputs.get(one.same_as[0])) is not None:
            expected = other.array.shape[one.same_as[1]] + one.offset
            if size != expected:
                of = f"axis {one.same_as[1]} of input '{one.same_as[0]}'{f' {one.offset:+d}' if one.offset else ''}"
                raise _invalid(spec.name, f"axis {one.axis}: expected {expected}, as {of}, got {size}")


def _axis_text(spec: TensorSpec, one: AxisRange) -> str:
    assert spec.shape is not None
    return str(spec.shape[one.axis])


def with_ranges(specs: Sequence[TensorSpec], described: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Returns a model's inputs with the ranges of its manifest.

    Args:
        specs: As the runtime knows them.
        described: As the manifest does.

    Raises:
        ValueError: a range is of an axis, its own or another input's, that the model does not have.
    """
    ranges = {spec.name: spec.ranges for spec in described}
    ranks = {spec.name: None if spec.shape is None else len(spec.shape) for spec in specs}
    for spec in specs:
        for one in ranges.get(spec.name, ()):
            for name, axis in ((spec.name, one.axis), *([one.same_as] if one.same_as else [])):
                rank = ranks.get(name)
                if rank is None or axis >= rank:
                    raise ValueError(
                        f"manifest.inputs '{spec.name[:64]}'.ranges: expected an axis of the model, got axis {axis} "
                        f"of '{name[:64]}'"
                    )
    return tuple(replace(spec, ranges=ranges.get(spec.name, ())) for spec in specs)


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.datatype} {'of any shape' if spec.shape is None else shape_text(spec.shape)}"


def _invalid(name: str, text: str) -> ServiceError:
    return ServiceError(Reason.INVALID_INPUT, f"input '{name[:128]}': {text}", input=name[:128])
