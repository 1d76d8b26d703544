"""Attention, bags and differences as calls that the converter writes rightly, with rows that can be proved independent.

They belong to `onnx_forms.FORMS`.

Shapes: B examples, T queries, S keys, E channels, K ids, L any axes before the last two.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

_AXES: Final = 4


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **other: Any
) -> Tensor:
    """Calls scaled_dot_product_attention on four axes, which the converter expects, whatever L is.

    A query whose float mask leaves it no key is answered with 0, as by torch; the converter's form has NaN there. For
    boolean masks, `passes.mask_with_infinity` does so.

    Returns:
        (L, T, E), as torch.
    """
    before, mask = query.shape[:-2], attn_mask
    if query.ndim != _AXES:
        query, key, value = _of_four(query), _of_four(key), _of_four(value)
        if mask is not None and mask.ndim > 2:
            mask = _of_four(mask.expand(*before, *mask.shape[-2:]))
    answer = functional.scaled_dot_product_attention(query, key, value, mask, *rest, **other)
    if len(before) + 2 != _AXES:
        answer = answer.reshape(*before, *answer.shape[-2:])
    if attn_mask is None or attn_mask.dtype == torch.bool:
        return answer
    has_keys = (attn_mask > -torch.inf).any(-1, keepdim=True)
    return torch.where(has_keys, answer, torch.zeros((), dtype=answer.dtype))


def embedding_bag(input: Tensor, weight: Tensor, offsets: Tensor | None = None, *rest: Any, **other: Any) -> Any:
    """Looks up bags of equal size (B, K) and reduces them; the converter's form is a loop over the rows.

    Returns:
        (B, E), as torch.
    """
    names = ("max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights",
             "include_last_offset", "padding_idx")  # fmt: skip
    settings = dict(zip(names, rest, strict=False)) | other
    is_plain = all(settings.get(name) is None for name in ("max_norm", "padding_idx"))
    if input.ndim != 2 or offsets is not None or not is_plain:
        return NotImplemented
    found = functional.embedding(input, weight)
    if (weights := settings.get("per_sample_weights")) is not None:
        found = found * weights.unsqueeze(-1)
    mode = settings.get("mode", "mean")
    return found.amax(1) if mode == "max" else found.sum(1) if mode == "sum" else found.mean(1)


def reversed_difference(x: Tensor, other: Any, *, alpha: float = 1) -> Any:
    """Computes other - x of integers x and a real number, as in 1.0 - attention_mask; which has no form."""
    if not isinstance(other, float) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return NotImplemented
    return other - alpha * x.to(torch.get_default_dtype())


def _of_four(tensor: Tensor) -> Tensor:
    """Returns L as two axes: ones are put after them, or those after the first, the batch, become one."""
    while tensor.ndim < _AXES:
        tensor = tensor.unsqueeze(-3)
    return tensor if tensor.ndim == _AXES else tensor.flatten(1, tensor.ndim - 3)
