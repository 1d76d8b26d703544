"""The Python call: a user's own trained module, straight to a verified version.

Shapes: B examples.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import nn

from fitserve_contract.repository import check_model_name
from fitserve_contract.tasks import Task
from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate, HeldOut, InputSpec, Tolerance
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.onnx_export import on_cpu, sentence
from fitserve_exporters.publishing.publish import PublishedVersion, publish_candidate

__all__ = ["PublishedVersion", "export"]

TensorLike: TypeAlias = torch.Tensor | Array
Examples: TypeAlias = TensorLike | Sequence[TensorLike] | Mapping[str, TensorLike]

BATCH: Final = "batch"

_DRAWN_EXAMPLES: Final = 64
"""So many inputs are drawn where there is no held-out set."""


def export(
    module: nn.Module,
    example: Examples,
    repository: str | os.PathLike[str],
    name: str,
    *,
    held_out: tuple[Examples, TensorLike | None] | None = None,
    task: Task | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    free_axes: Mapping[str, Mapping[int, str]] | None = None,
    tolerance: Tolerance | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> PublishedVersion:
    """Exports a trained module to ONNX, verifies it against eager torch, and publishes it as the model's next version.

    Args:
        module: Its forward takes tensors and gives a tensor or a flat sequence of tensors. It is copied, not changed.
        example: Its inputs, each (B, ...): one tensor, a sequence in the order of forward, or a mapping by name.
        repository: Model repository; made where it is not there.
        name: Model name: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
        held_out: Inputs in the same form as `example` and their labels or None. Without it the module is verified on
            inputs drawn from the values of `example`, and the version says so.
        task: What the outputs mean, so that Evaluate can score them.
        input_names: In the order of forward; by default the names of a mapping, else those of forward's parameters.
        output_names: By default `output`, or `output_0`, `output_1`, … where there are several.
        free_axes: Input name to axis to name, for free axes beside the batch: {"input_ids": {1: "sequence"}}.
        tolerance: By default the one that Tolerance explains.
        training: How it was trained, JSON-able, for the manifest.
        seed: Of all sampling.

    Raises:
        ExportError: an argument is not as said here, or the module cannot be exported; nothing is published.
        NotVerifiedError: ONNX Runtime's answers are not torch's; the message holds the figures, nothing is published.
    """
    _check_name(name)
    arrays = _named(example, module, input_names)
    candidate = Candidate(
        module=module,
        inputs=_specs(arrays, free_axes or {}),
        output_names=tuple(output_names) if output_names else _output_names(module, arrays),
        held_out=_held_out(held_out, module, input_names, arrays, seed),
        task=task,
        training=training or {},
        tolerance=tolerance or Tolerance(),
        seed=seed,
    )
    return publish_candidate(candidate, Path(repository), name)


def drawn_inputs(arrays: Arrays, seed: int) -> Arrays:
    """Draws inputs that look like the example: its own rows first, then others made of its values.

    Real elements are drawn from all of the tensor, others (token ids, masks, categories) from the same place in
    another row, since their range may depend on the place.

    Args:
        arrays: Input name to (B, ...).
        seed: Same seed, same inputs.
    """
    generator = np.random.default_rng(seed)
    return {name: np.concatenate([array, _drawn(array, generator)]) for name, array in arrays.items()}


def _drawn(array: Array, generator: np.random.Generator) -> Array:
    shape = (_DRAWN_EXAMPLES, *array.shape[1:])
    if array.dtype.kind == "f":
        return generator.choice(array.reshape(-1), shape)
    rows = generator.integers(0, len(array), shape)
    return np.asarray(np.take_along_axis(array, rows, axis=0))


def _check_name(name: str) -> None:
    try:
        check_model_name(name)
    except ValueError as error:
        raise ExportError(str(error)) from error


def _named(example: Examples, module: nn.Module, input_names: Sequence[str] | None) -> Arrays:
    if isinstance(example, Mapping):
        arrays = {name: _array(name, value) for name, value in example.items()}
        if input_names and set(input_names) != set(arrays):
            raise ExportError(f"inputs: expected {sorted(input_names)}, got {sorted(arrays)}")
        return {name: arrays[name] for name in input_names or _in_forward_order(module, list(arrays))}
    values = [example] if isinstance(example, torch.Tensor | np.ndarray) else list(example)
    names = list(input_names) if input_names else _forward_names(module)[: len(values)]
    if len(names) != len(values):
        raise ExportError(f"inputs: expected one per parameter of forward ({', '.join(names)}), got {len(values)}")
    return {name: _array(name, value) for name, value in zip(names, values, strict=True)}


def _array(name: str, value: TensorLike) -> Array:
    try:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.array(value)
    except TypeError:
        raise ExportError(f"input '{name}': expected a dtype that numpy has, got {value.dtype}") from None
    if array.ndim == 0 or len(array) == 0:
        raise ExportError(f"input '{name}': expected shape (B, ...) with at least 1 example, got {array.shape}")
    return array


def _forward_names(module: nn.Module) -> list[str]:
    parameters = inspect.signature(getattr(module, "_orig_mod", module).forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _in_forward_order(module: nn.Module, names: list[str]) -> list[str]:
    order = _forward_names(module)[: len(names)]
    if set(order) != set(names):
        raise ExportError(f"inputs: expected the first parameters of forward ({', '.join(order)}), got {sorted(names)}")
    return order


def _specs(arrays: Arrays, free_axes: Mapping[str, Mapping[int, str]]) -> tuple[InputSpec, ...]:
    unknown = sorted(set(free_axes) - set(arrays))
    if unknown:
        raise ExportError(f"free_axes: expected inputs of {', '.join(arrays)}, got {', '.join(unknown)}")
    return tuple(
        InputSpec(
            name,
            torch.from_numpy(array[:0]).dtype,
            (BATCH, *(free_axes.get(name, {}).get(axis, array.shape[axis]) for axis in range(1, array.ndim))),
        )
        for name, array in arrays.items()
    )


def _output_names(module: nn.Module, arrays: Arrays) -> tuple[str, ...]:
    try:
        with torch.inference_mode():
            outputs = on_cpu(module)(*(torch.from_numpy(array) for array in arrays.values()))
    except Exception as error:  # a user's forward may raise anything
        raise ExportError(f"module: its forward fails on the example: {sentence(error)}") from error
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return ("output",) if len(leaves) == 1 else tuple(f"output_{index}" for index in range(len(leaves)))


def _held_out(
    held_out: tuple[Examples, TensorLike | None] | None,
    module: nn.Module,
    input_names: Sequence[str] | None,
    arrays: Arrays,
    seed: int,
) -> HeldOut:
    if held_out is None:
        return HeldOut(
            drawn_inputs(arrays, seed), None, "drawn from the values of the example: no held-out set was given"
        )
    examples, labels = held_out
    truth = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    return HeldOut(_named(examples, module, input_names), truth, "given to export()")
