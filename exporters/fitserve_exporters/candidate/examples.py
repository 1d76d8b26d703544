"""A user's example: tensors or arrays by place or by name, checked one by one, and the axes of them that are free.

Shapes: B examples.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import nn

from fitserve_contract.tensor_bytes import bytes_element
from fitserve_exporters.candidate.calling import Calling, by_name, by_position
from fitserve_exporters.candidate.candidate import Array, Arrays, InputSpec
from fitserve_exporters.errors import ExportError

TensorLike: TypeAlias = torch.Tensor | Array
Examples: TypeAlias = TensorLike | Sequence[TensorLike] | Mapping[str, TensorLike]
FreeAxes: TypeAlias = Mapping[str, Mapping[int, str]]

BATCH: Final = "batch"

_KINDS: Final = "biuf"
"""Of numpy: booleans, integers and floats."""


def calling_of(module: nn.Module, example: Examples, input_names: Sequence[str] | None) -> Calling:
    """Finds how the module takes an example.

    Raises:
        ExportError: the example is of another form, or forward takes other arguments.
    """
    if isinstance(example, Mapping):
        if not example or not all(isinstance(name, str) and name for name in example):
            raise ExportError(f"example: expected input names (str) as the keys of the mapping, got {list(example)!r}")
        return by_name(module, list(example), input_names)
    values = _in_order(example, "example")
    return by_position(module, len(values), input_names)


def arrays_of(
    example: Examples,
    calling: Calling,
    what: str = "example",
    *,
    widens_bfloat16: bool = False,
    takes_texts: bool = False,
) -> Arrays:
    """Returns the examples as arrays, in the order of the inputs.

    Args:
        example: Tensors or arrays, each (B, ...).
        calling: The inputs.
        what: How messages call it.
        widens_bfloat16: Whether bfloat16 tensors are taken as float32, as they are beside bfloat16 weights.
        takes_texts: Whether arrays of `str` or `bytes` are taken; they become `bytes` objects.

    Raises:
        ExportError: not one tensor per input, not one number of examples, or a tensor that no version can take.
    """
    if isinstance(example, Mapping):
        if set(example) != set(calling.names):
            raise ExportError(f"{what}: expected the inputs {sorted(calling.names)}, got {sorted(map(str, example))}")
        values = {name: example[name] for name in calling.names}
    else:
        ordered = _in_order(example, what)
        if len(ordered) != len(calling.names):
            names = ", ".join(calling.names)
            raise ExportError(f"{what}: expected {len(calling.names)} tensors ({names}), got {len(ordered)}")
        values = dict(zip(calling.names, ordered, strict=True))
    if takes_texts:
        values = {name: texts_as_bytes(f"{what}, input '{name}'", value) for name, value in values.items()}
    arrays = {
        name: _array(f"{what}, input '{name}'", value, widens_bfloat16, _KINDS + "O" * takes_texts)
        for name, value in values.items()
    }
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ExportError(f"{what}: expected one number of examples in all inputs, got {counts}; the first axis is it")
    return arrays


def input_specs(arrays: Arrays, free_axes: FreeAxes | None) -> tuple[InputSpec, ...]:
    """Describes the inputs of an example: the batch is free, and so are the axes in `free_axes`.

    Raises:
        ExportError: `free_axes` names inputs or axes that are not there, or axes of unlike size alike.
    """
    axes = _free_axes(arrays, {} if free_axes is None else free_axes)
    return tuple(
        InputSpec(
            name,
            torch.from_numpy(array[:0]).dtype,
            (BATCH, *(axes[name].get(axis, array.shape[axis]) for axis in range(1, array.ndim))),
        )
        for name, array in arrays.items()
    )


def _in_order(example: Any, what: str) -> list[Any]:
    if isinstance(example, torch.Tensor | np.ndarray):
        return [example]
    if isinstance(example, list | tuple) and example:
        return list(example)
    raise ExportError(
        f"{what}: expected a tensor or array (B, ...), a sequence or a mapping of them, got {_found(example)}"
    )


def texts_as_bytes(where: str, value: Any) -> Any:
    """Returns an array of texts as `bytes` objects, and any other value as it is.

    Raises:
        ExportError: an array of objects that are no texts.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OSU":
        return value
    made = np.empty(value.size, object)
    try:
        made[:] = [bytes_element(text) for text in value.reshape(-1).tolist()]
    except ValueError as error:
        raise ExportError(f"{where}: expected an array of str or bytes, got others: {error}") from error
    return made.reshape(value.shape)


def _array(where: str, value: Any, widens_bfloat16: bool, kinds: str = _KINDS) -> Array:
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise ExportError(f"{where}: expected a tensor or array (B, ...), got {_found(value)}")
    array = _array_of_tensor(where, value, widens_bfloat16) if isinstance(value, torch.Tensor) else np.array(value)
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        raise ExportError(
            f"{where}: expected booleans, integers or floats of at most 64 bits, got {array.dtype}; turn text into "
            "token ids and complex numbers into pairs first"
        )
    if array.ndim == 0 or array.size == 0:
        raise ExportError(
            f"{where}: expected shape (B, ...) with at least 1 example and no empty axis, got {array.shape}; one "
            "example gets its axis by unsqueeze(0)"
        )
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def _array_of_tensor(where: str, tensor: torch.Tensor, widens_bfloat16: bool) -> Array:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        kinds = {"nested": tensor.is_nested, "quantized": tensor.is_quantized, "meta": tensor.device.type == "meta"}
        kind = next((kind for kind, is_it in kinds.items() if is_it), "sparse")
        cure = {
            "nested": "to_padded_tensor(0.0)",
            "quantized": "dequantize()",
            "sparse": "to_dense()",
            "meta": "torch.randn_like(x, device='cpu')",
        }[kind]
        raise ExportError(f"{where}: expected a dense tensor with values, got a {kind} one; give its {cure}")
    if tensor.dtype == torch.bfloat16 and widens_bfloat16:
        tensor = tensor.float()
    try:
        return np.array(tensor.detach().cpu().resolve_conj().resolve_neg().numpy())
    except TypeError:
        raise ExportError(f"{where}: expected a dtype that numpy has, got {tensor.dtype}; give x.float()") from None


def _found(value: Any) -> str:
    if isinstance(value, bool | int | float | complex | str | bytes):
        return f"{type(value).__name__} {str(value)[:40]!r}; torch.tensor([...]) makes one"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}; torch.tensor(...) makes one tensor of it"
    if isinstance(value, torch.utils.data.DataLoader):
        return "a DataLoader; give the inputs of one batch: next(iter(loader))[0]"
    if isinstance(value, torch.utils.data.Dataset):
        return "a Dataset; stack the inputs of a few of its examples: torch.stack([...])"
    if hasattr(value, "to_numpy"):
        return f"{type(value).__name__}; give its to_numpy()"
    return type(value).__name__


def _free_axes(arrays: Arrays, free_axes: FreeAxes) -> dict[str, dict[int, str]]:
    if not isinstance(free_axes, Mapping):
        raise ExportError(
            f"free_axes: expected a mapping of input to {{axis: name}}, got {type(free_axes).__name__}; "
            f"for example {{'{next(iter(arrays))}': {{1: 'sequence'}}}}"
        )
    unknown = sorted(set(map(str, free_axes)) - set(arrays))
    if unknown:
        raise ExportError(f"free_axes: expected inputs of {', '.join(arrays)}, got {', '.join(unknown)}")
    axes = {name: _axes_of(name, array, free_axes.get(name, {})) for name, array in arrays.items()}
    _check_sizes(arrays, axes)
    return axes


def _axes_of(name: str, array: Array, given: Any) -> dict[int, str]:
    where = f"free_axes['{name}']"
    if not isinstance(given, Mapping):
        raise ExportError(
            f"{where}: expected a mapping of axis to name, got {type(given).__name__}; for example {{1: 'sequence'}}"
        )
    axes: dict[int, str] = {}
    for key, title in given.items():
        axis = _axis(where, key, array.ndim)
        if not isinstance(title, str) or not title.isidentifier():
            raise ExportError(
                f"{where}[{key}]: expected a name of letters, digits and _, got {title!r}; for example 'sequence'"
            )
        if title == BATCH:
            raise ExportError(f"{where}[{key}]: expected another name than '{BATCH}', which is the first axis's")
        if axes.get(axis, title) != title:
            raise ExportError(f"{where}: expected one name for axis {axis}, got '{axes[axis]}' and '{title}'")
        axes[axis] = title
    return axes


def _axis(where: str, key: Any, rank: int) -> int:
    """Reads an axis; a negative one counts from the end."""
    try:
        axis = operator.index(key)
    except TypeError:
        raise ExportError(f"{where}: expected axes as integers, got {key!r}") from None
    last = f"1 to {rank - 1} (or -{rank - 1} to -1)" if rank > 1 else "none: the input has the batch alone"
    if isinstance(key, bool) or not -rank <= axis < rank:
        raise ExportError(f"{where}: expected an axis of {last}, got {key!r}; the input has {rank} axes")
    if axis % rank == 0:
        raise ExportError(
            f"{where}: expected an axis of {last}, got {key!r}; the first axis is the batch and always free"
        )
    return axis % rank


def _check_sizes(arrays: Arrays, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Axes of one name are of one size in every request: they have to be so in the example."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, named in axes.items():
        for axis, title in named.items():
            size, where = arrays[name].shape[axis], f"'{name}' axis {axis}"
            other, first = sizes.setdefault(title, (size, where))
            if size != other:
                raise ExportError(
                    f"free_axes: expected axes called '{title}' to be of one size, got {other} in {first} and {size} "
                    f"in {where}; axes that differ need different names"
                )
