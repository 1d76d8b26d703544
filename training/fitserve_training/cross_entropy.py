"""Cross-entropy over few classes, in the order of memory that a CPU is quick at.

A row of 10 logits is shorter than a vector, so that torch goes over rows value by value; a column of 256 is not.
Shapes: B examples, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MOST_CLASSES = 64
"""Where a row fills the vectors by itself there is nothing to gain."""


def cross_entropy(logits_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Gives the mean cross-entropy in nats, by columns while it trains on a CPU with few classes.

    Args:
        logits_BC: float (B, C).
        targets_B: int64 (B,).
    """
    if not _is_quicker_by_columns(logits_BC, targets_B):
        return functional.cross_entropy(logits_BC, targets_B)
    loss: Tensor = _ByColumns.apply(logits_BC, targets_B)  # type: ignore[no-untyped-call]
    return loss


def column_loss(log_CB: Tensor, targets_B: Tensor) -> Tensor:
    """Gives the mean cross-entropy of logarithms of probabilities (C, B)."""
    return log_CB.gather(0, targets_B.unsqueeze(0)).mean().neg_()


def column_slopes(log_CB: Tensor, targets_B: Tensor, factor: float | Tensor) -> Tensor:
    """Gives what `factor` times the loss changes by, per logit, (C, B): probabilities less the right answer, over B."""
    ones_1B = log_CB.new_full((1, len(targets_B)), -1.0)
    slopes_CB = log_CB.exp().scatter_add_(0, targets_B.unsqueeze(0), ones_1B)
    return slopes_CB.mul_(factor / len(targets_B))


def _is_quicker_by_columns(logits: Tensor, targets: Tensor) -> bool:
    is_trained = logits.requires_grad and logits.device.type == "cpu" and not torch.compiler.is_compiling()
    is_plain = logits.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
    return is_trained and is_plain and logits.shape[1] <= _MOST_CLASSES and logits.numel() > 0


class _ByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, targets_B: Tensor) -> Tensor:
        log_CB = torch.log_softmax(logits_BC.t().contiguous(), dim=0)
        ctx.save_for_backward(log_CB, targets_B)
        return column_loss(log_CB, targets_B)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        log_CB, targets_B = ctx.saved_tensors
        return column_slopes(log_CB, targets_B, slope).t(), None
