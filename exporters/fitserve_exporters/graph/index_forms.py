"""Look-ups that refuse what torch refuses: an index below 0 counts from the end in ONNX, and is an error in torch.

An index below 0 is moved to the size of the axis, which ONNX Runtime refuses as well. Without that a request with the
token id -1 would be answered by the last word of the vocabulary, and one with length 0 by the last step.
They belong to `onnx_forms.FORMS`.

Shapes: K rows of a table, N classes.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

_MOST_CLASSES: Final = 1024
"""One-hot codes of so many classes are looked up in a table of N by N."""


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, *_: Any, **__: Any
) -> Any:
    """Looks rows of a table (K, E) up."""
    del padding_idx  # of the gradient alone
    return NotImplemented if max_norm is not None else torch.embedding(weight, _refused(input, weight.shape[0]))


def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Any:
    """Looks elements along an axis up."""
    del sparse_grad
    return torch.gather(input, dim, _refused(index, input.shape[dim]))


def one_hot(tensor: Tensor, num_classes: int = -1) -> Any:
    """Returns codes (..., N); the converter's form writes no 1 for a class that there is not."""
    if not 0 < num_classes <= _MOST_CLASSES:
        return NotImplemented
    return functional.embedding(_refused(tensor, num_classes), torch.eye(num_classes, dtype=torch.int64))


def _refused(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, size, index) if index.dtype in (torch.int32, torch.int64) else index
