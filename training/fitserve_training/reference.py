"""The same mathematics by hand: small, eager, in any float dtype; what the trainer's runs are held against.

Nothing here uses torch.nn, torch.optim or a fused loss. Shapes: B examples of a batch, D inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LinearModel:
    """x·w + b with `weight` (D, K) and `bias` (K); updated in place by the functions below."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x_BD: Tensor) -> Tensor:
        return x_BD @ self.weight + self.bias

    def descend(self, x_BD: Tensor, slope_BK: Tensor, lr: float) -> None:
        """Takes one step against the gradient, given the loss's slope with respect to each output."""
        self.weight -= lr * (x_BD.T @ slope_BK)
        self.bias -= lr * slope_BK.sum(dim=0)


def linear_regression(model: LinearModel, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> list[float]:
    """Trains on mean squared error; gives each step's loss before its update.

    Source: loss mean (ŷ - y)², so the slope is 2 (ŷ - y) / B. With half the squared error, `lr` is twice as large.
    """
    losses = []
    for x_BD, y_B1 in batches:
        error_B1 = model(x_BD) - y_B1
        losses.append((error_B1 * error_B1).mean().item())
        model.descend(x_BD, 2 * error_B1 / len(x_BD), lr)
    return losses


def softmax_regression(model: LinearModel, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> list[float]:
    """Trains on mean cross-entropy over flattened inputs; gives each step's loss before its update.

    Source: with p = softmax(logits), the slope of -log p[label] is p - onehot(label).
    """
    losses = []
    for inputs, labels_B in batches:
        x_BD = inputs.reshape(len(inputs), -1)
        p_BC = softmax(model(x_BD))
        rows = torch.arange(len(labels_B))
        losses.append(-p_BC[rows, labels_B].log().mean().item())
        p_BC[rows, labels_B] -= 1
        model.descend(x_BD, p_BC / len(x_BD), lr)
    return losses


def softmax(logits_BC: Tensor) -> Tensor:
    """Gives probabilities (B, C); the largest logit is subtracted first, so nothing overflows."""
    exponentials_BC = (logits_BC - logits_BC.amax(dim=1, keepdim=True)).exp()
    return exponentials_BC / exponentials_BC.sum(dim=1, keepdim=True)


def lenet_logits(parameters: Sequence[Tensor], images_B1HW: Tensor) -> Tensor:
    """LeNet's forward by hand: convolutions as sums of products over patches, average pooling as a mean of slices.

    Args:
        parameters: Weight and bias of the two convolutions and the three linear layers, in order.
        images_B1HW: (B, 1, 28, 28).
    """
    w1, b1, w2, b2, *linear = parameters
    hidden = torch.nn.functional.pad(images_B1HW, (2, 2, 2, 2))
    hidden = _pool(_sigmoid(_convolve(hidden, w1, b1)))
    hidden = _pool(_sigmoid(_convolve(hidden, w2, b2))).reshape(len(images_B1HW), -1)
    for weight, bias in ((linear[0], linear[1]), (linear[2], linear[3])):
        hidden = _sigmoid(hidden @ weight.T + bias)
    return hidden @ linear[4].T + linear[5]


def lenet(parameters: Sequence[Tensor], batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> list[float]:
    """Trains LeNet by plain gradient descent, `parameters` in place; gives each step's loss before its update."""
    losses = []
    for images_B1HW, labels_B in batches:
        logits_BC = lenet_logits(parameters, images_B1HW)
        rows = torch.arange(len(labels_B))
        loss = (logits_BC.exp().sum(dim=1).log() - logits_BC[rows, labels_B]).mean()
        gradients = torch.autograd.grad(loss, list(parameters))
        losses.append(loss.item())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
    return losses


def _convolve(x_BIHW: Tensor, weight_OIKK: Tensor, bias_O: Tensor) -> Tensor:
    size = weight_OIKK.shape[-1]
    patches_BIHWKK = x_BIHW.unfold(2, size, 1).unfold(3, size, 1)
    return torch.einsum("bihwkl,oikl->bohw", patches_BIHWKK, weight_OIKK) + bias_O.reshape(1, -1, 1, 1)


def _pool(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def line_loss(w: Tensor, b: Tensor, x_N: Tensor, y_N: Tensor) -> Tensor:
    """Mean squared error of w·x + b."""
    return ((w * x_N + b - y_N) ** 2).mean()


def line_gradient_by_differences(w: Tensor, b: Tensor, x_N: Tensor, y_N: Tensor, delta: float = 0.1) -> Tensor:
    """Central differences; exact up to rounding, because the loss is quadratic. Gives (dL/dw, dL/db)."""
    in_w = line_loss(w + delta, b, x_N, y_N) - line_loss(w - delta, b, x_N, y_N)
    in_b = line_loss(w, b + delta, x_N, y_N) - line_loss(w, b - delta, x_N, y_N)
    return torch.stack((in_w, in_b)) / (2 * delta)


def line_gradient_by_chain_rule(w: Tensor, b: Tensor, x_N: Tensor, y_N: Tensor) -> Tensor:
    """dL/dŷ = 2 (ŷ - y) / N, times dŷ/dw = x and dŷ/db = 1. Gives (dL/dw, dL/db)."""
    slope_N = 2 * (w * x_N + b - y_N) / len(x_N)
    return torch.stack(((slope_N * x_N).sum(), slope_N.sum()))


def line_gradient_by_autograd(w: Tensor, b: Tensor, x_N: Tensor, y_N: Tensor) -> Tensor:
    """The same gradient from torch's autograd. Gives (dL/dw, dL/db)."""
    leaves = [w.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()]
    return torch.stack(torch.autograd.grad(line_loss(leaves[0], leaves[1], x_N, y_N), leaves))


def line_descent(x_N: Tensor, y_N: Tensor, lr: float, epochs: int) -> tuple[list[float], Tensor]:
    """Fits a line from w = 1, b = 0 by the chain rule; gives each epoch's loss before its update, and (w, b)."""
    parameters, losses = torch.tensor([1.0, 0.0], dtype=x_N.dtype), []
    for _ in range(epochs):
        losses.append(line_loss(parameters[0], parameters[1], x_N, y_N).item())
        parameters = parameters - lr * line_gradient_by_chain_rule(parameters[0], parameters[1], x_N, y_N)
    return losses, parameters
