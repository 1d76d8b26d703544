"""Calls of torch's functions, written as calls that have an ONNX form whose rows can be proved independent.

Shapes: B examples, T queries, S keys, E channels, K ids, L any axes before the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor
from torch.nn import functional

_AXES: Final = 4
_BAGGED: Final = ("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse",
                  "per_sample_weights", "include_last_offset", "padding_idx")  # fmt: skip
_ATTENDED: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def attention(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls scaled_dot_product_attention on four axes, which the converter expects, whatever L is.

    Returns:
        (L, T, E), as torch.
    """
    given = dict(zip(_ATTENDED, args, strict=False)) | dict(kwargs)
    query: Tensor = given["query"]
    if query.ndim == _AXES:
        return func(*args, **kwargs)
    mask = given.get("attn_mask")
    if mask is not None and mask.ndim > 2:
        given["attn_mask"] = _of_four(mask.expand(*query.shape[:-2], *mask.shape[-2:]))
    of_four = {name: _of_four(given[name]) for name in ("query", "key", "value")}
    answer: Tensor = func(**given | of_four)
    return answer.reshape(*query.shape[:-2], *answer.shape[-2:])


def embedding_bag(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Looks up bags of equal size (B, K) and reduces them; the converter's form is a loop over the rows.

    Returns:
        (B, E), as torch.
    """
    given = dict(zip(_BAGGED, args, strict=False)) | dict(kwargs)
    ids, weights = given["input"], given.get("per_sample_weights")
    is_plain = given.get("padding_idx") is None and given.get("max_norm") is None
    if ids.ndim != 2 or not is_plain:
        return func(*args, **kwargs)
    found = functional.embedding(ids, given["weight"])
    if weights is not None:
        found = found * weights.unsqueeze(-1)
    return {"sum": found.sum, "mean": found.mean, "max": found.amax}[given.get("mode", "mean")](1)


EQUIVALENTS: Final[Mapping[str, Callable[..., Any]]] = {
    "scaled_dot_product_attention": attention,
    "embedding_bag": embedding_bag,
}
"""The name of torch's function to what is traced in its place."""


def _of_four(tensor: Tensor) -> Tensor:
    """Returns L as two axes: ones are put after them, or those after the first, the batch, become one."""
    while tensor.ndim < _AXES:
        tensor = tensor.unsqueeze(-3)
    return tensor if tensor.ndim == _AXES else tensor.flatten(1, tensor.ndim - 3)
