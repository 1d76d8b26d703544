"""What is minimised and what is counted, one class per kind of task.

Each gives the loss of a batch as a scalar, and its sums as a float64 vector that adds up over batches on the device and
is read once per epoch. Shapes: B examples, C classes, D outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fitserve_contract.tasks import TaskKind


class Objective(Protocol):
    """The loss of a task and the sums that its metrics come from."""

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""

    @property
    def sum_count(self) -> int:
        """Length of the vector of sums."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the scalar to minimise: a mean over the batch's examples."""

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Gives the batch's addends, float64 of shape (sum_count,)."""

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Turns sums over `example_count` examples into `loss` and the task's own metrics."""


class Classification:
    """One of C classes: mean cross-entropy in nats on logits (B, C) against int64 class indices (B,)."""

    kind = TaskKind.CLASSIFICATION
    sum_count = 2

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the mean cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Sums the loss and counts the right answers."""
        correct = (outputs.argmax(dim=1) == targets).sum()
        return torch.stack((loss.double() * len(targets), correct.double()))

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Gives the mean loss and the accuracy, 0..1."""
        return {"loss": sums[0] / example_count, "accuracy": sums[1] / example_count}


class Regression:
    """Real values: mean squared error of outputs (B, D) against targets (B, D)."""

    kind = TaskKind.REGRESSION
    sum_count = 4

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the mean squared error over all B * D values."""
        return functional.mse_loss(outputs, targets)

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Sums the loss, the absolute error, and the targets and their squares that R² needs."""
        count, wide = len(targets), targets.double()
        absolute = (outputs.double() - wide).abs().sum() / targets[0].numel()
        return torch.stack((loss.double() * count, absolute, wide.mean() * count, wide.square().mean() * count))

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Gives the mean squared error as `loss`, the mean absolute error, and R² where the targets vary."""
        squared, absolute, total, total_squares = sums
        metrics = {"loss": squared / example_count, "mae": absolute / example_count}
        variation = total_squares - total * total / example_count
        return metrics | ({"r2": 1 - squared / variation} if variation > 0 else {})
