"""The gradient of softmax regression, and plain descent, by hand: the same mathematics in less time.

With 10 outputs the arithmetic of a step takes no longer than autograd's and the optimizer's account of it, so there is
none here. Everything stands in columns, (C, B) instead of (B, C): a matrix product is cut into tiles along its first
two sides, and a vector goes along a row, where 10 classes would fill neither. Source: Bishop, "Pattern Recognition and
Machine Learning", section 4.3.4.

Shapes: B examples, D inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fitserve_training.compiling import Gradient
from fitserve_training.cross_entropy import column_loss, column_slopes
from fitserve_training.data.dataset import Batch
from fitserve_training.objectives import Classification, Objective


def derived_gradient(model: nn.Module, objective: Objective, autocast: torch.autocast) -> Gradient | None:
    """Gives the gradient function of one linear layer under cross-entropy on a CPU; None for anything else."""
    if not isinstance(objective, Classification) or autocast._enabled:
        return None
    if objective.label_smoothing or objective.class_weights is not None:
        return None
    if not isinstance(model, nn.Sequential) or [type(layer) for layer in model] != [nn.Flatten, nn.Linear]:
        return None
    flatten, linear = model
    assert isinstance(linear, nn.Linear)
    is_usual = linear.bias is not None and linear.weight.requires_grad and linear.bias.requires_grad
    if not is_usual or linear.weight.device.type != "cpu" or flatten.start_dim != 1:
        return None

    def gradient(batch: Batch, sums: Tensor, share: float | Tensor) -> Tensor:
        logits_CB, loss = softmax_slopes(linear, batch.inputs[0].flatten(1), batch.targets, share)
        sums.add_(objective.sums(logits_CB.t(), batch.targets, loss))
        return loss

    return gradient


def softmax_slopes(linear: nn.Linear, x_BD: Tensor, targets_B: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
    """Adds the gradient of the mean cross-entropy, times `share`, to the layer's; gives logits (C, B) and the loss."""
    with torch.no_grad():
        logits_CB = torch.mm(linear.weight, x_BD.t()).add_(linear.bias.unsqueeze(1))
        log_CB = torch.log_softmax(logits_CB, dim=0)
        slopes_CB = column_slopes(log_CB, targets_B, share)
        _add_gradient(linear.weight, torch.mm(slopes_CB, x_BD))
        _add_gradient(linear.bias, slopes_CB.sum(1))
        return logits_CB, column_loss(log_CB, targets_B)


def plain_descent(optimizer: torch.optim.Optimizer) -> Callable[[], None] | None:
    """Gives the update of SGD with nothing but a learning rate on a CPU, to the same bits; None for any other."""
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) != 1:
        return None
    (group,) = optimizer.param_groups
    parameters = group["params"]
    if any(group[key] for key in ("momentum", "dampening", "nesterov", "weight_decay", "maximize")):
        return None
    if isinstance(group["lr"], Tensor) or any(parameter.device.type != "cpu" for parameter in parameters):
        return None

    def update() -> None:
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])

    return update


def _add_gradient(parameter: Tensor, addend: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = addend
    else:
        parameter.grad.add_(addend)
