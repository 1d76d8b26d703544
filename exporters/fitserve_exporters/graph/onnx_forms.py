"""Functions of torch that the converter has no ONNX form for, or a wrong one, as compositions of others while a module
is traced.

The converter of torch writes log(sigmoid(x)) for logsigmoid, which is -inf at -104; pi for the angle of (-1, 0) becomes
-pi; and cdist, cumprod, median and others have no form at all. The reference stays the module as it is: these forms are
held against it like every other part of a graph.

Shapes: T elements along one axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fitserve_exporters.graph.index_forms import embedding, gather, one_hot
from fitserve_exporters.graph.layer_forms import attention, embedding_bag, reversed_difference


class OnnxForms(TorchFunctionMode):
    """While it is entered, the functions in `FORMS` are traced as their compositions."""

    def __torch_function__(
        self, func: Callable[..., Any], _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces a call that a form takes; runs all others as they are."""
        form = FORMS.get(getattr(func, "__name__", ""))
        given = kwargs or {}
        first = next(iter((*args, *given.values())), None)
        if form is None or "out" in given or not isinstance(first, Tensor):
            return func(*args, **given)
        answer = form(*args, **given)
        return func(*args, **given) if answer is NotImplemented else answer


def _log_sigmoid(x: Tensor) -> Tensor:
    return -functional.softplus(-x, threshold=30) if x.dtype == torch.float32 else _stable_log_sigmoid(x)


def _stable_log_sigmoid(x: Tensor) -> Tensor:
    return x.clamp(max=0) - torch.log(1 + torch.exp(-x.abs()))


def _logaddexp(x: Tensor, other: Tensor) -> Tensor:
    # Where both are the same infinity their distance is NaN.
    apart = torch.where(x == other, torch.zeros_like(x + other), (x - other).abs())
    return torch.maximum(x, other) - _log_sigmoid(apart)


def _logaddexp2(x: Tensor, other: Tensor) -> Tensor:
    log_2 = math.log(2.0)
    return _logaddexp(x * log_2, other * log_2) / log_2


def _until(x: Tensor, dim: int, fill: float) -> Tensor:
    """Repeats an axis of T for each of its places, (..., T, T), the last axis filled behind the place."""
    row = x.movedim(dim, -1).unsqueeze(-2)
    place = torch.arange(row.shape[-1])
    return torch.where(place <= place.unsqueeze(-1), row, fill)


def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    return _until(x, dim, -math.inf).logsumexp(-1).movedim(-1, dim)


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    wide = x.to(dtype) if dtype is not None else x if x.is_floating_point() else x.long()
    return _until(wide, dim, 1).prod(-1).movedim(-1, dim)


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """Computes the angle of (x, y), in -pi to pi: from the slope, moved by pi on the left of the axis."""
    both_infinite = torch.isinf(y) & torch.isinf(x)
    both_zero = (y == 0) & (x == 0)
    up = torch.where(both_infinite, torch.sign(y), y)
    right = torch.where(both_infinite, torch.sign(x), torch.where(both_zero, torch.ones_like(x), x))
    turn = torch.where(_is_negative(y), -math.pi, math.pi)
    return torch.atan(up / right) + torch.where(_is_negative(x), turn, torch.zeros_like(turn)).to(up.dtype)


def _is_negative(x: Tensor) -> Tensor:
    return (x < 0) | ((x == 0) & (1 / x < 0))  # 1 / -0.0 is -inf


def _log1p(x: Tensor) -> Tensor:
    """Computes log(1 + x) to full precision near 0 (W. Kahan): the rounding of 1 + x cancels in the quotient."""
    if not x.is_floating_point():
        return torch.log(1 + x)
    total = 1 + x
    kept = total - 1
    is_plain = (kept == 0) | torch.isinf(total)
    factor = torch.where(is_plain, torch.ones_like(x), x / torch.where(is_plain, torch.ones_like(x), kept))
    return torch.where(kept == 0, x, torch.log(total) * factor)


def _expm1(x: Tensor) -> Tensor:
    """Computes exp(x) - 1 to full precision near 0: 2 t / (1 - t) with t = tanh(x / 2)."""
    if not x.is_floating_point():
        return torch.exp(x) - 1
    half = torch.tanh(x.clamp(-1, 1) / 2)
    return torch.where(x.abs() < 1, 2 * half / (1 - half), torch.exp(x) - 1)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    """Computes the distances from their differences, (..., P, R); torch's own form depends on the sizes."""
    del compute_mode
    distances: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)
    return distances


def _take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Any:
    if dim is None or x.ndim != indices.ndim:
        return NotImplemented
    axis = dim % x.ndim
    if any(x.shape[one] != indices.shape[one] for one in range(1, x.ndim) if one != axis):
        return NotImplemented
    return torch.gather(x, axis, indices)  # which in ONNX counts from the end, as this function does in torch


def _fmax(x: Tensor, other: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), other, torch.where(torch.isnan(other), x, torch.maximum(x, other)))


def _fmin(x: Tensor, other: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), other, torch.where(torch.isnan(other), x, torch.minimum(x, other)))


def _hypot(x: Tensor, other: Tensor) -> Tensor:
    largest = torch.maximum(x.abs(), other.abs())
    scale = torch.where((largest == 0) | torch.isinf(largest), torch.ones_like(largest), largest)
    length = scale * torch.sqrt((x / scale) ** 2 + (other / scale) ** 2)
    return torch.where(torch.isinf(x) | torch.isinf(other), math.inf, length)


def _copysign(x: Tensor, other: Tensor | float) -> Tensor:
    sign = torch.full_like(x, other) if isinstance(other, int | float) else other
    return torch.where(_is_negative(sign), -x.abs(), x.abs())


def _median(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        return NotImplemented
    return torch.return_types.median(_of_rank(x, (x.shape[dim] + 1) // 2, dim, keepdim))


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return torch.return_types.kthvalue(_of_rank(x, k, dim, keepdim))


def _of_rank(x: Tensor, k: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Returns the k-th smallest values along an axis, and their places."""
    values, indices = torch.sort(x, dim)
    value, index = values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return (value, index) if keepdim else (value.squeeze(dim), index.squeeze(dim))


def _searchsorted(
    sequence: Tensor, x: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, **other: Any
) -> Any:
    if sequence.ndim != 1 or not isinstance(x, Tensor) or any(value is not None for value in other.values()):
        return NotImplemented
    is_right = right or side == "right"
    wide = x.unsqueeze(-1)
    count = (sequence <= wide if is_right else sequence < wide).sum(-1)
    return count.to(torch.int32) if out_int32 else count


FORMS: Final[Mapping[str, Callable[..., Any]]] = {
    "log_sigmoid": _log_sigmoid,
    "logsigmoid": _log_sigmoid,
    "logaddexp": _logaddexp,
    "logaddexp2": _logaddexp2,
    "logcumsumexp": _logcumsumexp,
    "cumprod": _cumprod,
    "atan2": _atan2,
    "arctan2": _atan2,
    "log1p": _log1p,
    "expm1": _expm1,
    "cdist": _cdist,
    "take_along_dim": _take_along_dim,
    "fmax": _fmax,
    "fmin": _fmin,
    "hypot": _hypot,
    "copysign": _copysign,
    "median": _median,
    "kthvalue": _kthvalue,
    "searchsorted": _searchsorted,
    "scaled_dot_product_attention": attention,
    "embedding_bag": embedding_bag,
    "embedding": embedding,
    "gather": gather,
    "one_hot": one_hot,
    "rsub": reversed_difference,
    "__rsub__": reversed_difference,
}
"""Name of a function or method of torch to what is traced in its place."""
