"""From a candidate's module to an exported program of torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from fitserve_exporters.candidate.candidate import Arrays, Candidate
from fitserve_exporters.candidate.module_copy import on_cpu
from fitserve_exporters.candidate.served_module import ServedModule
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.assumptions import constant_axis
from fitserve_exporters.graph.cures import cure_of
from fitserve_exporters.graph.onnx_forms import OnnxForms
from fitserve_exporters.graph.recurrent import OnnxRecurrence
from fitserve_exporters.texts import sentence

_SPECIALIZED: Final = re.compile(
    r"marked (?:L\['tensors'\]\[(?P<input>\d+)\]\.size\(\)\[(?P<axis>\d+)\]|\w+) as dynamic but your code "
    r"specialized it to be a constant \((?P<size>\d+)\)"
)
"""What torch.export says of an axis that it was told to keep free; the batch goes by its name."""

_TRACED_SIZE: Final = 2
"""torch.export takes an axis of size 0 or 1 for a constant."""


class _Traced(nn.Module):
    """A module whose recurrent layers, and functions without an ONNX form, are traced as ONNX has them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> object:
        with OnnxForms(), OnnxRecurrence():
            return self.module(*tensors)


def traced_program(candidate: Candidate) -> torch.export.ExportedProgram:
    """Traces a copy of a candidate's module with every free axis free.

    Raises:
        ExportError: torch cannot trace it; the message holds torch's own reason.
    """
    module = on_cpu(candidate.module)
    # Any number of examples must do, while other axes may end somewhere (a position table): DYNAMIC finds out where.
    batch = Dim(str(candidate.module_inputs[0].shape[0]))
    shapes = tuple(dict.fromkeys(axes, Dim.DYNAMIC) | {0: batch} for axes in free_axes(candidate))
    example = tuple(torch.from_numpy(array) for array in traced_example(candidate).values())
    try:
        with _stock_attention():
            return torch.export.export(_Traced(module), example, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch.export raises whatever the module's own code and its tracer raise
        if found := _SPECIALIZED.search(str(error)):
            spec, axis = candidate.module_inputs[int(found["input"] or 0)], int(found["axis"] or 0)
            raise constant_axis((spec.name, axis), str(spec.shape[axis]), int(found["size"])) from error
        name = type(module.module if isinstance(module, ServedModule) else module).__name__
        raise ExportError(f"export: torch.export cannot trace {name}: {reason(error)}") from error


def traced_example(candidate: Candidate) -> Arrays:
    """Gives the module's inputs that are traced: held-out rows, each free axis at least 2 long."""
    example = {}
    held_out = candidate.held_out.rows(np.arange(min(_TRACED_SIZE, candidate.held_out.example_count)))
    given = candidate.module_arrays(held_out)
    for spec in candidate.module_inputs:
        array = given[spec.name]
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and array.shape[axis] < _TRACED_SIZE:
                array = array.repeat(_TRACED_SIZE, axis)
        example[spec.name] = array
    return example


def free_axes(candidate: Candidate) -> tuple[dict[int, str], ...]:
    """Gives for each input of the module its free axes and their names."""
    return tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in candidate.module_inputs
    )


def reason(error: BaseException) -> str:
    """Returns the sentence of the innermost cause, and a cure: the outer ones are advice on torch's issue tracker."""
    while error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, ExportError):
            break
    if isinstance(error, ExportError):
        return str(error).removeprefix("export: ")
    return f"{sentence(error)}; {cure_of(str(error))}"


@contextlib.contextmanager
def _stock_attention() -> Iterator[None]:
    """Turns off torch's fused layers of nn.Transformer: they have no ONNX form."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
