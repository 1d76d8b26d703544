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


def line_gradients(w: Tensor, b: Tensor, x_N: Tensor, y_N: Tensor) -> list[Tensor]:
    """The line's gradient three ways: central differences, chain rule, autograd."""
    ways = (line_gradient_by_differences, line_gradient_by_chain_rule, line_gradient_by_autograd)
    return [way(w, b, x_N, y_N) for way in ways]


def largest_gap(gradients: Sequence[Tensor]) -> float:
    """How far gradients of one point differ from the first, relative to its largest component."""
    first = gradients[0]
    return max(((other - first).abs().max() / first.abs().max()).item() for other in gradients[1:])


def half_squared_regression(model: LinearModel, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> list[float]:
    """Linear regression with its own gradient descent; gives each step's mean loss before its update.

    Source: Zhang et al., Dive into Deep Learning, section "Linear Regression Implementation from Scratch": the loss
    (ŷ - y)² / 2 is summed, and the update divides by the batch size.
    """
    losses = []
    for x_BD, y_B1 in batches:
        error_B1 = model(x_BD) - y_B1
        losses.append((error_B1 * error_B1 / 2).mean().item())
        model.descend(x_BD, error_B1, lr / len(x_BD))
    return losses


def summed_line(model: LinearModel, x_N1: Tensor, y_N1: Tensor, lr: float, epochs: int) -> list[float]:
    """Fits a line on the sum of squared errors of all examples; gives each epoch's loss before its update."""
    losses = []
    for _ in range(epochs):
        error_N1 = model(x_N1) - y_N1
        losses.append((error_N1 * error_N1).sum().item())
        model.descend(x_N1, 2 * error_N1, lr)
    return losses


def line_closed_form(start: Tensor, goal: Tensor, x_N: Tensor, lr: float, epochs: int) -> Tensor:
    """Where `epochs` steps on the sum of squared errors of noiseless data lead, in one formula.

    The error of (w, b) is multiplied by I - 2 lr [[Σx², Σx], [Σx, N]] each step.

    Args:
        start: (w, b) before the first step.
        goal: (w, b) of the data.
        x_N: Inputs, float64.
        lr: Learning rate.
        epochs: Steps.
    """
    moments = torch.stack((torch.stack((x_N @ x_N, x_N.sum())), torch.stack((x_N.sum(), x_N.new_tensor(len(x_N))))))
    factor = torch.eye(2, dtype=x_N.dtype) - 2 * lr * moments
    end: Tensor = goal + torch.linalg.matrix_power(factor, epochs) @ (start - goal)
    return end


def two_layer_gradient(w1: Tensor, w2: Tensor, x_ND: Tensor, y_NK: Tensor) -> tuple[float, Tensor, Tensor]:
    """Sum of squares of max(x w1, 0) w2 - y and its gradients, derived by hand.

    Source: with h = x w1 and a = max(h, 0), the slope at the output is 2 (a w2 - y); w2 gets aᵀ times that, and w1 xᵀ
    times the slope at a, which passes only where h > 0.
    """
    hidden_NH = x_ND @ w1
    active_NH = hidden_NH * (hidden_NH > 0)
    error_NK = active_NH @ w2 - y_NK
    slope_NK = 2 * error_NK
    slope_NH = (slope_NK @ w2.T) * (hidden_NH > 0)
    return (error_NK * error_NK).sum().item(), x_ND.T @ slope_NH, active_NH.T @ slope_NK


def two_layer_descent(w1: Tensor, w2: Tensor, x_ND: Tensor, y_NK: Tensor, lr: float, epochs: int) -> list[float]:
    """Trains by the hand-derived gradient, `w1` and `w2` in place; gives each epoch's loss before its update."""
    losses = []
    for _ in range(epochs):
        loss, gradient_1, gradient_2 = two_layer_gradient(w1, w2, x_ND, y_NK)
        losses.append(loss)
        w1 -= lr * gradient_1
        w2 -= lr * gradient_2
    return losses
