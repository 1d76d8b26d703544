"""A Python callable as the reference: numpy arrays in, numpy arrays out, behind the calling convention of a module.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import nn

from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_exporters.candidate.candidate import Array, Arrays
from fitserve_exporters.errors import ExportError
from fitserve_exporters.texts import sentence

Reference: TypeAlias = Callable[..., Any]
"""Takes one array (B, ...) per input by position; returns an array, a tuple in the order of the outputs, or a mapping
by their names."""

NO_FLOAT64: Final = (
    "none was given, so the reference's own answers are taken as exact: an element may be off by rtol of its value or "
    "of its feature's scale, by atol, or by what the reference moves when its inputs move by one epsilon"
)

_MOST_APART: Final = 1e-2
"""Half of the elements may lie so far off the float64 reference, as a share of the scale; beyond, it is another one."""


class NumpyReference(nn.Module):
    """Runs a callable as if it were a module. Copies share the callable: it has to answer alike at every call.

    Args:
        reference: Takes the inputs as the file does.
        exact: Takes real inputs in float64; None where there is none.
        outputs: Of the file; answers are brought to their datatypes.
        input_dtypes: Of the file's inputs, in order.
    """

    def __init__(
        self,
        reference: Reference,
        exact: Reference | None,
        outputs: Sequence[TensorSpec],
        input_dtypes: Sequence[np.dtype[Any]],
    ) -> None:
        super().__init__()
        self._reference = reference
        self._exact = exact
        self._specs = tuple(outputs)
        self._input_dtypes = tuple(input_dtypes)
        self.eval()

    def __deepcopy__(self, _: dict[int, Any]) -> NumpyReference:
        """Returns another one of the same callables."""
        return NumpyReference(self._reference, self._exact, self._specs, self._input_dtypes)

    def forward(self, *inputs: Array) -> tuple[torch.Tensor, ...]:
        """Takes one array per input, (B, ...) each, and returns one tensor per output, in the file's datatypes."""
        answers = self._answers("reference", self._reference, inputs)
        named = zip(self._specs, answers, strict=True)
        return tuple(torch.from_numpy(np.array(_narrowed(spec, answer))) for spec, answer in named)

    def in_float64(self, inputs: Sequence[Array]) -> tuple[Arrays, str]:
        """Returns the most exact answers there are, in float64, and why they are not computed in float64.

        Args:
            inputs: In order, (B, ...) each.

        Raises:
            ExportError: a callable fails, or the two are not the same model.
        """
        given = [array.astype(dtype) for array, dtype in zip(inputs, self._input_dtypes, strict=True)]
        own = self._answers("reference", self._reference, given)
        if self._exact is None:
            is_narrow = any(answer.dtype.kind == "f" and answer.dtype.itemsize < 8 for answer in own)
            return self._by_name([answer.astype(np.float64) for answer in own]), NO_FLOAT64 if is_narrow else ""
        wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in inputs]
        exact = [answer.astype(np.float64) for answer in self._answers("float64", self._exact, wide)]
        for spec, one, other in zip(self._specs, own, exact, strict=True):
            _check_same_model(spec.name, one, other)
        return self._by_name(exact), ""

    def _by_name(self, answers: Sequence[Array]) -> Arrays:
        return {spec.name: answer for spec, answer in zip(self._specs, answers, strict=True)}

    def _answers(self, what: str, function: Reference, arrays: Sequence[Array]) -> list[Array]:
        try:
            returned = function(*map(_own_copy, arrays))
        except Exception as error:  # a user's callable may raise anything
            raise ExportError(f"{what}: fails on the examples: {sentence(error)}") from error
        ordered = _in_order(what, returned, [spec.name for spec in self._specs])
        return [
            _checked(f"{what}, output '{spec.name}'", spec, answer, len(arrays[0]))
            for spec, answer in zip(self._specs, ordered, strict=True)
        ]


def _own_copy(array: Array) -> Array:
    """Copies an array for a user's callable, which gets texts as `str`."""
    if array.dtype.kind != "O":
        return array.copy()
    texts = np.empty(array.size, object)
    texts[:] = [text.decode() for text in array.reshape(-1)]
    return texts.reshape(array.shape)


def _in_order(what: str, returned: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(returned, Mapping):
        if set(returned) != set(names):
            found = ", ".join(sorted(map(str, returned)))
            raise ExportError(f"{what}: expected the outputs {', '.join(names)}, got {found}; {_LEAVE_OUT}")
        return [returned[name] for name in names]
    ordered = list(returned) if isinstance(returned, tuple) else [returned]
    if len(ordered) != len(names):
        raise ExportError(
            f"{what}: expected {len(names)} arrays ({', '.join(names)}), got {len(ordered)}; return a tuple in this "
            f"order or a mapping by name; {_LEAVE_OUT}"
        )
    return ordered


_LEAVE_OUT: Final = "outputs=[...] leaves the others out of the version"


def _checked(where: str, spec: TensorSpec, answer: Any, example_count: int) -> Array:
    """Checks one answer's kind and shape; an axis of 1 at the end may be missing, as in many estimators."""
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().cpu().numpy()
    try:
        array = np.asarray(answer)
    except ValueError as error:
        raise ExportError(f"{where}: expected an array, got {type(answer).__name__}: {error}") from error
    wanted = NUMPY_DTYPES[spec.datatype]
    if array.dtype.kind not in "biuf":
        raise ExportError(
            f"{where}: expected {wanted}, got {array.dtype}; return numbers: for text labels the index of the class, "
            "np.searchsorted(model.classes_, labels)"
        )
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ExportError(f"{where}: expected {wanted} as in the file, got {array.dtype}")
    if spec.shape is not None and len(spec.shape) == array.ndim + 1 and spec.shape[-1] in (1, None):
        array = array[..., None]
    if array.ndim == 0 or len(array) != example_count:
        raise ExportError(
            f"{where}: expected one row per example, shape ({example_count}, ...), got {array.shape}; the first axis "
            "has to be the batch"
        )
    return array


def _narrowed(spec: TensorSpec, answer: Array) -> Array:
    dtype = NUMPY_DTYPES[spec.datatype]
    with np.errstate(over="ignore"):
        narrowed = answer.astype(dtype)
    if answer.dtype.kind in "iu" and not np.array_equal(narrowed, answer):
        raise ExportError(f"reference, output '{spec.name}': expected values that {dtype} holds, got larger ones")
    return np.asarray(narrowed)


def _check_same_model(name: str, own: Array, exact: Array) -> None:
    """Refuses a float64 reference that answers otherwise: the distance to it would be the tolerance."""
    if own.shape != exact.shape:
        raise ExportError(f"float64, output '{name}': expected shape {own.shape} as of reference, got {exact.shape}")
    with np.errstate(invalid="ignore"):
        gaps = np.abs(own.astype(np.float64) - exact)
    gaps, values = gaps[np.isfinite(gaps)], exact[np.isfinite(exact)]
    if not gaps.size:
        return
    scale = float(np.sqrt(np.mean((values / (top := np.abs(values).max() or 1.0)) ** 2)) * top)
    if float(np.median(gaps)) > _MOST_APART * scale:
        raise ExportError(
            f"float64, output '{name}': expected what reference answers, more exactly, got answers "
            f"{float(np.median(gaps)):.3g} apart where values are about {scale:.3g}; give the same model in float64, "
            "or leave float64 out"
        )
