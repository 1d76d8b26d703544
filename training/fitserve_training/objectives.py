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

from fitserve_contract.class_counts import ClassCounts
from fitserve_contract.tasks import TaskKind
from fitserve_training.cross_entropy import cross_entropy


class Objective(Protocol):
    """The loss of a task and the sums that its metrics come from."""

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""

    @property
    def sum_count(self) -> int:
        """Length of the vector of sums."""

    @property
    def is_summed(self) -> bool:
        """Whether the loss of a batch is a sum over its examples; otherwise it is their mean."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the scalar to minimise."""

    def weight(self, targets: Tensor) -> int | Tensor:
        """Returns how much a batch counts for in a mean over several: its examples, or the sum of their weights."""

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Gives the batch's addends, float64 of shape (sum_count,)."""

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Turns sums over `example_count` examples into `loss` and the task's own metrics."""

    def figures(self, outputs: Tensor, targets: Tensor, /) -> dict[str, float]:
        """Computes the metrics of a whole split that its sums do not hold."""


class _PerExample:
    """What objectives have in common whose examples count alike, and whose sums hold all."""

    def weight(self, targets: Tensor) -> int:
        """Counts the examples."""
        return len(targets)

    def figures(self, *_: Tensor) -> dict[str, float]:
        """Adds nothing."""
        return {}


class Classification:
    """One of C classes: mean cross-entropy in nats on logits (B, C) against int64 class indices (B,).

    With weights the mean is that of torch.nn.CrossEntropyLoss: divided by the sum of the examples' weights.

    Args:
        label_smoothing: Share of each label that is spread over all classes, 0..1.
        class_weights: float32 (C,) on the device of the run; None weighs all classes alike.
    """

    kind = TaskKind.CLASSIFICATION
    is_summed = False

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    @property
    def sum_count(self) -> int:
        """Loss, right answers, and the weight where classes have one."""
        return 2 if self.class_weights is None else 3

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the mean cross-entropy."""
        if not self.label_smoothing and self.class_weights is None:
            return cross_entropy(outputs, targets)
        weights = None if self.class_weights is None else self.class_weights.to(outputs)
        return functional.cross_entropy(outputs, targets, weights, label_smoothing=self.label_smoothing)

    def weight(self, targets: Tensor) -> int | Tensor:
        """Counts the examples, or sums their weights, float64."""
        return len(targets) if self.class_weights is None else self.class_weights[targets].double().sum()

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Sums the loss and counts the right answers; with weights sums these too."""
        correct = (outputs.contiguous().argmax(dim=1) == targets).sum()
        weight = self.weight(targets)
        found = (loss.double() * weight, correct.double())
        return torch.stack((*found, weight) if isinstance(weight, Tensor) else found)

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Gives the mean loss and the accuracy, 0..1."""
        return {"loss": sums[0] / (sums[2] if len(sums) > 2 else example_count), "accuracy": sums[1] / example_count}

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Gives balanced accuracy and macro F1, 0..1, as scikit-learn does; nothing without examples."""
        counts = class_counts(outputs, targets)
        return {"balanced_accuracy": counts.balanced_accuracy, "macro_f1": counts.macro_f1} if len(targets) else {}


def class_counts(outputs: Tensor, targets: Tensor) -> ClassCounts:
    """Counts by class what logits (N, C) answer against class indices (N,); NaN answers none."""
    answers = outputs.argmax(dim=1).masked_fill(outputs.isnan().any(dim=1), -1)
    return ClassCounts.of(targets.cpu().numpy(), answers.cpu().numpy(), outputs.shape[1])


class Regression(_PerExample):
    """Real values: squared error of outputs (B, D) against targets (B, D).

    Args:
        factor: What the squared error is multiplied by; ½ for a loss whose slope is the error itself.
        is_summed: The loss of a batch, and of a split, is the sum over its values instead of their mean.
    """

    kind = TaskKind.REGRESSION
    sum_count = 5

    def __init__(self, factor: float = 1.0, is_summed: bool = False) -> None:
        self._factor = factor
        self.is_summed = is_summed

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the squared error over all B * D values, their mean or their sum."""
        loss = functional.mse_loss(outputs, targets, reduction="sum" if self.is_summed else "mean")
        return loss if self._factor == 1 else loss * self._factor

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Sums the loss, the squared and absolute errors, and the targets and their squares that R² needs."""
        count, wide = len(targets), targets.double()
        error = outputs.double() - wide
        means = (error.square().mean(), error.abs().mean(), wide.mean(), wide.square().mean())
        return torch.stack((loss.double() * (1 if self.is_summed else count), *(mean * count for mean in means)))

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Gives the loss, the mean absolute error, and R² where the targets vary."""
        loss, squared, absolute, total, total_squares = sums
        metrics = {"loss": loss if self.is_summed else loss / example_count, "mae": absolute / example_count}
        variation = total_squares - total * total / example_count
        return metrics | ({"r2": 1 - squared / variation} if variation > 0 else {})


class MultiLabel(_PerExample):
    """Any of C classes: mean binary cross-entropy in nats on logits (B, C) against bool labels (B, C).

    A label is predicted where its probability is at least ½, that is its logit at least 0.
    """

    kind = TaskKind.MULTI_LABEL
    is_summed = False

    def __init__(self, class_count: int) -> None:
        self._class_count = class_count

    @property
    def sum_count(self) -> int:
        """Loss, exact matches, and three counts per class."""
        return 2 + 3 * self._class_count

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gives the mean binary cross-entropy over all B * C labels."""
        return functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Sums the loss and counts exact matches and, per class, the labels that are right, predicted and true."""
        predicted, true = outputs >= 0, targets.bool()
        exact = (predicted == true).all(dim=1).sum()
        counts = torch.cat([each.sum(dim=0) for each in (predicted & true, predicted, true)])
        return torch.cat((torch.stack((loss.double() * len(targets), exact.double())), counts.double()))

    def metrics(self, sums: Sequence[float], example_count: int) -> dict[str, float]:
        """Gives the mean loss, micro and macro F1 (0 for a class never predicted nor true), and exact match, 0..1."""
        count = self._class_count
        right, predicted, true = (sums[2 + k * count : 2 + (k + 1) * count] for k in range(3))
        per_class = [_f1(*counts) for counts in zip(right, predicted, true, strict=True)]
        return {
            "loss": sums[0] / example_count,
            "micro_f1": _f1(sum(right), sum(predicted), sum(true)),
            "macro_f1": sum(per_class) / count,
            "exact_match": sums[1] / example_count,
        }


def _f1(right: float, predicted: float, true: float) -> float:
    return 2 * right / (predicted + true) if predicted + true else 0.0
