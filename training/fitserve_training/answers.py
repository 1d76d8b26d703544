"""A trained model's answers on the held-out examples, and which of them are worst. Shapes: N examples, C classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fitserve_contract.tasks import TaskKind


@dataclass(frozen=True)
class Answers:
    """Outputs for every held-out example, in the order of the split.

    Args:
        kind: The task.
        outputs: (N, C) logits, or (N, D) values.
        targets: (N,) class indices, bool (N, C), or (N, D) values.
    """

    kind: TaskKind
    outputs: Tensor
    targets: Tensor

    def losses(self) -> Tensor:
        """Gives each example's loss, (N,): cross-entropy, mean binary cross-entropy, or mean squared error."""
        if self.kind is TaskKind.CLASSIFICATION:
            return functional.cross_entropy(self.outputs, self.targets, reduction="none")
        if self.kind is TaskKind.MULTI_LABEL:
            targets = self.targets.to(self.outputs.dtype)
            return functional.binary_cross_entropy_with_logits(self.outputs, targets, reduction="none").mean(dim=1)
        return (self.outputs - self.targets).square().flatten(1).mean(dim=1)

    def worst(self, count: int) -> list[int]:
        """Gives the places of the examples with the highest loss, worst first; equal ones in order."""
        return self.losses().argsort(descending=True, stable=True)[:count].tolist()

    def confusion(self) -> list[list[int]]:
        """Counts, for classification, true class (row) against predicted class (column)."""
        count = self.outputs.shape[1]
        joint = self.targets * count + self.outputs.argmax(dim=1)
        counts: list[list[int]] = torch.bincount(joint, minlength=count * count).reshape(count, count).tolist()
        return counts

    def per_label(self) -> list[tuple[int, int, int]]:
        """Counts, for multi-label, how often each label was right, predicted and true."""
        predicted, true = self.outputs >= 0, self.targets.bool()
        sums = [each.sum(dim=0).tolist() for each in (predicted & true, predicted, true)]
        return list(zip(*sums, strict=True))
