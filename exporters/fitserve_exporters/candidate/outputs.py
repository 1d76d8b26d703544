"""What a forward returns, as named tensors: one, a sequence, a mapping, a dataclass, a NamedTuple, or any nesting.

Shapes: B examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from fitserve_contract.datatypes import datatype_of
from fitserve_exporters.errors import ExportError

Path = tuple[str | int, ...]
"""Keys and places from what forward returns down to one tensor."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a version.

    Args:
        name: Its name.
        path: Where it lies in what forward returns.
        batch_axis: The axis of the batch there; served as the first axis.
    """

    name: str
    path: Path
    batch_axis: int = 0

    def take(self, returned: Any) -> torch.Tensor:
        """Picks the tensor out of what forward returned, with the batch as its first axis."""
        for key in self.path:
            children = _children(returned)
            assert children is not None
            returned = children[key]
        tensor: torch.Tensor = returned
        return tensor.movedim(self.batch_axis, 0) if self.batch_axis else tensor


def leaves(returned: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields all that forward returned and that is no container, in order, each with its path."""
    children = _children(returned)
    if children is None:
        yield path, returned
        return
    for key, child in children.items():
        yield from leaves(child, (*path, key))


def tensors_of(returned: Any, chosen: Sequence[str] | None = None) -> tuple[dict[Path, torch.Tensor], list[str]]:
    """Returns the tensors that forward returned, by path, and the names of what was None.

    Args:
        returned: What forward returned.
        chosen: The caller's names; where all are keys that forward returns, nothing else is looked at.

    Raises:
        ExportError: something else is among them, or a tensor that no version can serve.
    """
    found, missing = {}, []
    all_leaves = list(leaves(returned))
    keys = {default_name(path) for path, _ in all_leaves if path and isinstance(path[0], str)}
    is_choice = chosen is not None and set(chosen) <= keys
    for path, leaf in all_leaves:
        if is_choice and default_name(path) not in (chosen or ()):
            continue
        if leaf is None:
            missing.append(default_name(path))
        else:
            found[path] = _checked(default_name(path), leaf)
    if not found:
        raise ExportError("outputs: expected forward to return at least one tensor, got none; return what is served")
    return found, missing


def default_name(path: Path) -> str:
    """Names an output by its keys, joined by `_`; `output_0`, … where it has a place instead of a key."""
    words = [str(part) for part in path]
    return "_".join(words if path and isinstance(path[0], str) else ["output", *words])


def named_outputs(paths: Sequence[Path], chosen: Sequence[str] | None, taken: Sequence[str]) -> list[tuple[str, Path]]:
    """Names the outputs.

    Args:
        paths: What forward returns.
        chosen: The caller's names: one per output in order, or some of the keys that forward returns; None for default
            names.
        taken: Names of the inputs, which no output can have.

    Raises:
        ExportError: the names are neither, or not each once.
    """
    defaults = {default_name(path): path for path in paths}
    if chosen is None:
        only = len(paths) == 1 and not any(isinstance(key, str) for key in paths[0])
        named = [("output" if only else name, path) for name, path in defaults.items()]
        return [(_free_name(name, taken), path) for name, path in named]
    if any(isinstance(path[0], str) for path in paths if path) and set(chosen) <= set(defaults):
        return [(name, defaults[name]) for name in chosen]
    if len(chosen) != len(paths):
        raise ExportError(
            f"output_names: expected {len(paths)} names, one per output of forward ({', '.join(defaults)}), "
            f"got {len(chosen)}: {', '.join(chosen)}"
        )
    return list(zip(chosen, paths, strict=True))


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_output" if not name.endswith("output") else "_0"
    return name


def _children(value: Any) -> Mapping[str | int, Any] | None:
    """Looks into a container; None where it is none."""
    if isinstance(value, torch.Tensor | PackedSequence):
        return None
    if isinstance(value, Mapping):
        return {str(key): child for key, child in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    return None


def _checked(name: str, leaf: Any) -> torch.Tensor:
    if isinstance(leaf, PackedSequence):
        raise ExportError(
            f"output '{name}': expected a tensor, got a PackedSequence; return pad_packed_sequence(..., "
            "batch_first=True, total_length=x.shape[1])[0]"
        )
    if not isinstance(leaf, torch.Tensor):
        raise ExportError(
            f"output '{name}': expected a tensor, got {type(leaf).__name__}; return tensors only, or choose the keys "
            "to serve with output_names"
        )
    if leaf.is_nested or leaf.layout != torch.strided or leaf.is_quantized:
        kind = "nested" if leaf.is_nested else "quantized" if leaf.is_quantized else "sparse"
        cure = {"nested": "to_padded_tensor(0.0)", "quantized": "dequantize()", "sparse": "to_dense()"}[kind]
        raise ExportError(f"output '{name}': expected a dense tensor, got a {kind} one; return its {cure}")
    try:
        datatype_of(leaf.new_empty(0, device="cpu").numpy().dtype)
    except (TypeError, ValueError):
        cure = "torch.view_as_real(y)" if leaf.is_complex() else "y.float()"
        raise ExportError(
            f"output '{name}': expected elements that can be served, got {leaf.dtype}; return {cure}"
        ) from None
    return leaf
