"""Eager torch as the reference: the module's own precision, and float64.

Shapes: B examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fitserve_exporters.candidate.candidate import Arrays, Candidate, Front
from fitserve_exporters.candidate.module_copy import on_cpu
from fitserve_exporters.candidate.numpy_reference import NumpyReference
from fitserve_exporters.errors import ExportError
from fitserve_exporters.texts import first_line, sentence

_CASTS: Final = ("half", "float", "bfloat16")
_NARROW: Final = (torch.float16, torch.bfloat16, torch.float32)


class TorchReference:
    """Answers of eager torch on the CPU. Not thread-safe: float64 runs change torch's default dtype while they last.

    Args:
        module: Is copied.
        input_names: Inputs in the order of its forward.
        output_names: One per output.
        front: What turns the inputs that are given into the module's; None where they are the same.
    """

    def __init__(
        self,
        module: nn.Module,
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        front: Front | None = None,
    ) -> None:
        self._input_names = input_names
        self._output_names = output_names
        self._front = front
        self._fp32 = on_cpu(module)
        self._fp64 = on_cpu(self._fp32).double()
        self.fp64_gap = ""
        """Why float64 answers are those of fp32; empty where they are not."""

    def fp32(self, inputs: Arrays) -> Arrays:
        """Gives every output, computed as the module is, by name.

        Raises:
            ExportError: forward fails, or its outputs are not one tensor or a flat sequence of tensors, one per name.
        """
        return self._answers(self._fp32, self._given(inputs))

    def fp64(self, inputs: Arrays) -> Arrays:
        """Gives every output, with weights and real inputs in float64, by name.

        A module whose forward insists on fp32 has no float64 answer: then these are its fp32 answers, and `fp64_gap`
        says so. A callable in a module's place has answers of its own.
        """
        if isinstance(self._fp64, NumpyReference):
            answers, self.fp64_gap = self._fp64.in_float64(self._given(inputs))
            return answers
        widened = [tensor.double() if tensor.is_floating_point() else tensor for tensor in self._given(inputs)]
        try:
            with _default_dtype(torch.float64), _InFloat64():
                answers = self._answers(self._fp64, widened)
        except ExportError as error:
            if not isinstance(error.__cause__, Exception):
                raise
            self.fp64_gap = f"the module does not run in float64: {first_line(error.__cause__)[:200]}"
            answers = self.fp32(inputs)
        return {name: array.astype(np.float64) for name, array in answers.items()}

    def _given(self, inputs: Arrays) -> list[Any]:
        """Returns the module's inputs in order: tensors, or arrays where a callable stands in its place."""
        arrays = inputs if self._front is None else self._front.encode(inputs)
        ordered = [arrays[name] for name in self._input_names]
        if isinstance(self._fp32, NumpyReference):
            return ordered
        return [torch.from_numpy(array).clone() for array in ordered]

    def _answers(self, module: nn.Module, tensors: list[Any]) -> Arrays:
        try:
            with torch.inference_mode():
                outputs = module(*tensors)
        except ExportError:  # of a callable in a module's place
            raise
        except Exception as error:  # a user's forward may raise anything
            raise ExportError(f"module: its forward fails on held-out examples: {sentence(error)}") from error
        flat = [outputs] if isinstance(outputs, torch.Tensor) else list(_flattened(outputs))
        if len(flat) != len(self._output_names):
            names = ", ".join(self._output_names)
            raise ExportError(f"outputs: expected {len(self._output_names)} tensors ({names}), got {len(flat)}")
        return {name: tensor.numpy() for name, tensor in zip(self._output_names, flat, strict=True)}


def reference_of(candidate: Candidate, module: nn.Module | None = None) -> TorchReference:
    """Makes the reference of a candidate, of its own module or of another one in its place."""
    names = tuple(spec.name for spec in candidate.module_inputs)
    return TorchReference(module or candidate.module, names, candidate.output_names, candidate.front)


def _flattened(outputs: object) -> Iterator[torch.Tensor]:
    for leaf in torch.utils._pytree.tree_leaves(outputs):
        if not isinstance(leaf, torch.Tensor):
            raise ExportError(f"outputs: expected tensors, got {type(leaf).__name__}")
        yield leaf


class _InFloat64(TorchFunctionMode):
    """Takes casts to a narrower real type, such as `x.half()` or `x.to(torch.float32)`, as casts to float64."""

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs a call with every real dtype in its arguments widened."""
        if getattr(func, "__name__", "") in _CASTS and isinstance(args[0], torch.Tensor):
            return args[0].double()
        wide = {key: _widened(value) for key, value in (kwargs or {}).items()}
        return func(*(_widened(value) for value in args), **wide)


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that a forward makes on its own have the default dtype: in float64 they must not fall back to fp32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
