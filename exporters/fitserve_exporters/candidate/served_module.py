"""A user's module behind one calling convention: tensors in the order of the inputs in, a flat tuple of tensors out.

The batch of every output is found by running the module, not by its code: three sizes of batch tell which axis follows.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from fitserve_exporters.candidate.calling import Calling
from fitserve_exporters.candidate.module_copy import on_cpu, widen_bfloat16
from fitserve_exporters.candidate.outputs import Output, Path, default_name, named_outputs, tensors_of
from fitserve_exporters.errors import ExportError
from fitserve_exporters.texts import sentence

_BATCHES: Final = (5, 7, 1)
"""Sizes of batch that every output is looked at with: two that few other axes have, and one example alone."""


_SAME: Final = 1e-5
"""Two copies of a module run the same code on the same inputs: more than this apart is no rounding."""


class ServedModule(nn.Module):
    """Takes the inputs of a version by position and returns its outputs as a tuple, each with the batch first.

    Args:
        module: Is called; owned by this one.
        calling: How.
        outputs: What of its answer is served.
    """

    def __init__(self, module: nn.Module, calling: Calling, outputs: Sequence[Output]) -> None:
        super().__init__()
        self.module = module
        self._calling = calling
        self._outputs = tuple(outputs)
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Takes one tensor per input, (B, ...) each, and returns one per output, (B, ...) each."""
        returned = self._calling.call(self.module, tensors)
        answers: list[torch.Tensor] = []
        for output in self._outputs:
            answer = output.take(returned)
            # A graph needs a node for every output: an input given back, or one tensor given twice, has none.
            is_known = any(answer is other for other in (*tensors, *answers))
            answers.append(answer.clone() if is_known else answer)
        return tuple(answers)


@dataclass(frozen=True, slots=True)
class Served:
    """A module that was made ready to export.

    Args:
        module: Its copy, behind the calling convention.
        output_names: Its outputs.
        notes: What is served otherwise than the module's forward returns it, one sentence each.
        shapes: Shape of each output for one example, (1, ...).
        kinds: numpy's kind of each output's elements.
    """

    module: ServedModule
    output_names: tuple[str, ...]
    notes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]


def serve(
    module: nn.Module, calling: Calling, example: Mapping[str, torch.Tensor], output_names: Sequence[str] | None
) -> Served:
    """Copies a module and finds out, by running the copy on an example, what it returns and where the batch is.

    Args:
        module: Is not changed.
        calling: How its forward takes the inputs.
        example: Input name to (B, ...), at least one row.
        output_names: The caller's names, see `named_outputs`; None for default names.

    Raises:
        ExportError: forward fails, returns something else than tensors, or an output has no axis that is the batch.
    """
    copied = on_cpu(module)
    notes = []
    if widen_bfloat16(copied):
        notes.append("bfloat16 weights are exported as float32, which holds each of their values exactly")
    rows = [example[name] for name in calling.names]
    first, missing = tensors_of(_answer(copied, calling, rows, "the example"), output_names)
    _drop_idle_hooks(copied, calling, rows, first, output_names)
    notes += [f"output '{name}' is None and left out" for name in missing]
    named = named_outputs(list(first), output_names, calling.names)
    seen = [_shapes(copied, calling, rows, size, [path for _, path in named], output_names) for size in _BATCHES]
    outputs = []
    for name, path in named:
        axis = _batch_axis(name, [shapes[path] for shapes in seen])
        outputs.append(Output(name, path, axis))
        if axis:
            notes.append(f"output '{name}': the batch is axis {axis} in torch and the first axis here")
    one = ServedModule(copied, calling, outputs)
    fresh = ServedModule(_uncalled_copy(module, copied), calling, outputs)
    _check_forgets(module, one, fresh, rows, [name for name, _ in named])
    answers = dict(zip((name for name, _ in named), one(*(tensor[:1] for tensor in rows)), strict=True))
    return Served(
        module=one,
        output_names=tuple(answers),
        notes=tuple(notes),
        shapes={name: tuple(answer.shape) for name, answer in answers.items()},
        kinds={name: answer.numpy().dtype.kind for name, answer in answers.items()},
    )


def _uncalled_copy(module: nn.Module, like: nn.Module) -> nn.Module:
    """Copies a module once more, without the hooks that the other copy was relieved of."""
    copied = on_cpu(module)
    widen_bfloat16(copied)
    for part, other in zip(copied.modules(), like.modules(), strict=True):
        if not other._forward_hooks and not other._forward_pre_hooks:
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
    return copied


def _check_forgets(
    module: nn.Module, one: ServedModule, fresh: ServedModule, rows: Sequence[torch.Tensor], names: Sequence[str]
) -> None:
    """Refuses a module that remembers the inputs of its first call: it would answer by the example's ever after.

    Args:
        module: The user's.
        one: Was called with the example.
        fresh: Is called with other inputs first: the example's, each row reversed.
        rows: The example.
        names: Of the outputs.
    """
    try:
        with torch.inference_mode():
            fresh(*(tensor.flip(-1) if tensor.ndim > 1 else tensor.clone() for tensor in rows))
            answers = [served(*(tensor.clone() for tensor in rows)) for served in (one, fresh)]
    except Exception:  # a user's forward may refuse such values: then nothing is known
        return
    for name, first, second in zip(names, *answers, strict=True):
        is_same = first.shape == second.shape and torch.allclose(
            first.double(), second.double(), rtol=_SAME, atol=_SAME, equal_nan=True
        )
        if not is_same:
            raise ExportError(
                f"output '{name}': expected the same answer to the same inputs, got others from "
                f"{type(module).__name__} after a first call with other inputs: the module draws random numbers or "
                "keeps state; compute what it keeps in __init__, from the weights alone"
            )


def _drop_idle_hooks(
    module: nn.Module,
    calling: Calling,
    rows: Sequence[torch.Tensor],
    expected: Mapping[Path, torch.Tensor],
    chosen: Sequence[str] | None,
) -> None:
    """Removes forward hooks, if the answer is the same without: they keep features, and would keep a tracer's."""
    hooks = [found for part in module.modules() for found in (part._forward_hooks, part._forward_pre_hooks) if found]
    if not hooks:
        return
    before = [dict(found) for found in hooks]
    for found in hooks:
        found.clear()
    try:
        answers, _ = tensors_of(_answer(module, calling, rows, "the example"), chosen)
        is_same = answers.keys() == expected.keys() and all(
            np.array_equal(answers[path].numpy(), expected[path].numpy(), equal_nan=True) for path in answers
        )
    except ExportError:
        is_same = False
    if not is_same:
        for found, kept in zip(hooks, before, strict=True):
            found.update(kept)


def _shapes(
    module: nn.Module,
    calling: Calling,
    rows: Sequence[torch.Tensor],
    size: int,
    paths: Sequence[Path],
    chosen: Sequence[str] | None,
) -> dict[Path, tuple[int, ...]]:
    repeated = [tensor[torch.arange(size) % len(tensor)] for tensor in rows]
    returned = _answer(module, calling, repeated, f"{size} example{'s' * (size > 1)}")
    tensors, _ = tensors_of(returned, chosen)
    gone = [default_name(path) for path in paths if path not in tensors]
    if gone:
        raise ExportError(
            f"outputs: expected the same ones for every number of examples, got no {', '.join(gone)} for {size}; "
            "return the batch as the first axis of a tensor, not as a list"
        )
    return {path: tuple(tensors[path].shape) for path in paths}


def _answer(module: nn.Module, calling: Calling, tensors: Sequence[torch.Tensor], given: str) -> Any:
    try:
        with torch.inference_mode():
            return calling.call(module, [tensor.clone() for tensor in tensors])
    except ExportError:
        raise
    except Exception as error:  # a user's forward may raise anything
        raise ExportError(f"module: its forward fails on {given}: {sentence(error)}{_cure(error, module)}") from error


def _cure(error: Exception, module: nn.Module) -> str:
    text = str(error).lower()
    if "dtype" in text or "expected scalar type" in text:
        dtype = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), None)
        return f"; the module's weights are {dtype}: give real inputs of that dtype" if dtype else ""
    if "no padding token" in text:
        return "; set pad_token_id in config.json to the id of a token that pads, as tokenizer.pad_token_id"
    if "_pack_padded_sequence" in text or "lengths" in text:
        return "; packed sequences need lengths of at least 1 for every example, as int64"
    return ""


def _batch_axis(name: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Finds the axis that is as long as the batch in every shape; the others have to stay as they are."""
    seen = ", ".join(f"{shape} for {size}" for shape, size in zip(shapes, _BATCHES, strict=True))
    found = f"got shape {seen} examples"
    if len({len(shape) for shape in shapes}) > 1:
        raise ExportError(
            f"output '{name}': expected the batch as its first axis, (B, ...), {found}; squeeze() drops the batch of "
            "one example: name the axis, as in squeeze(-1)"
        )
    following = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes == _BATCHES]
    moving = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if following == moving and len(following) == 1:
        return following[0]
    raise ExportError(
        f"output '{name}': expected one axis to be the batch, (B, ...), {found}; {_advice(shapes, moving)}"
    )


def _advice(shapes: Sequence[tuple[int, ...]], moving: Sequence[int]) -> str:
    if not moving:
        return (
            "it is one answer for all examples, such as a loss or a mean over the batch: return one row per example, "
            "or leave it out with output_names"
        )
    if len(moving) > 1:
        return "it compares the examples of a batch with each other: return what belongs to one example alone"
    sizes = [shape[moving[0]] for shape in shapes]
    if all(size % batch == 0 and size // batch == sizes[-1] for size, batch in zip(sizes, _BATCHES, strict=True)):
        return "it joins the batch with another axis: keep them apart, as in reshape(x.shape[0], -1)"
    return "its length depends on the values: return one row per example, as in torch.where(y > 0, y, 0)"
