"""Compares a finished run with the best constant prediction, which has learned nothing from the inputs.

Shapes: N training examples, C classes, D outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fitserve_contract.tasks import TaskKind
from fitserve_training.data.dataset import Split
from fitserve_training.errors import RunStoppedError
from fitserve_training.evaluating import evaluate
from fitserve_training.objectives import Classification, Objective
from fitserve_training.seeding import generator

_MOST_ROWS = 4096
"""Losses are compared over at most so many training examples: enough for a factor of two."""

_DIVERGED = 2.0
_IS_BETTER = 0.999
_LEAST_SHARE = 1e-6
_LEAST_LOSS = 1e-9
"""Targets that never vary have a constant prediction without a loss, and nothing is twice that."""


class ConstantPrediction(nn.Module):
    """Predicts the same outputs (K,) for every example."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps inputs, each (N, …), to outputs (N, K)."""
        return self.value.expand(len(inputs[0]), *self.value.shape)


@dataclass(frozen=True)
class Comparison:
    """Losses of the trained model and of the best constant prediction, over the same training examples."""

    loss: float
    constant_loss: float

    def check(self) -> str:
        """Returns a warning where the model is no better than the constant prediction, else an empty text.

        Raises:
            RunStoppedError: the loss is not finite, or above twice that of the constant prediction.
        """
        told = f"the final train loss is {self.loss:.6g}, that of the constant prediction {self.constant_loss:.6g}"
        if self.constant_loss <= _LEAST_LOSS:
            return ""
        if not self.loss <= _DIVERGED * self.constant_loss:
            raise RunStoppedError(
                f"{told}: the run diverged or hardly began to learn; lower the learning rate (--set lr=…), or train "
                "longer (--set epochs=…) if the loss still falls"
            )
        if self.loss > _IS_BETTER * self.constant_loss:
            return (
                f"warning: {told}: the model learned nothing from the inputs; change the learning rate (--set lr=…), "
                "train longer (--set epochs=…), or check that the inputs belong to the targets"
            )
        return ""


def compare_with_constant(
    model: nn.Module, objective: Objective, train: Split, seed: int, autocast: torch.autocast | None = None
) -> Comparison | None:
    """Evaluates the model and the best constant prediction; no example outside `train` is looked at.

    Returns None where no constant has the outputs' shape, or the user's loss takes none.

    Args:
        model: Trained, on the device of `train`.
        objective: What was minimised; labels are not smoothed here, and weights of classes count.
        train: Training examples (N, …).
        seed: Root seed; draws the examples that are compared where there are many.
        autocast: The run's precision.
    """
    rows = _some_rows(train, seed)
    if isinstance(objective, Classification):
        objective = Classification(class_weights=objective.class_weights)
    found = evaluate(model, objective, rows, autocast)
    losses = []
    for constant in _constants(objective, train.targets, found.outputs):
        if constant.shape != found.outputs.shape[1:]:
            return None
        try:
            losses.append(evaluate(ConstantPrediction(constant), objective, rows).metrics["loss"])
        except (RuntimeError, ValueError, TypeError, IndexError):  # a user's loss may ask for more than outputs
            return None
    losses = [loss for loss in losses if math.isfinite(loss)]
    return Comparison(found.metrics["loss"], min(losses)) if losses else None


def _some_rows(train: Split, seed: int) -> Split:
    if len(train) <= _MOST_ROWS:
        return train
    chosen = torch.randperm(len(train), generator=generator(seed, "constant"))[:_MOST_ROWS].sort().values
    return train.subset(chosen)


def _constants(objective: Objective, targets: Tensor, outputs: Tensor) -> list[Tensor]:
    """Builds the constants that the usual losses of a task are lowest at.

    Cross-entropy is lowest at the log of the classes' shares, by weight where they have weights, binary cross-entropy
    at their log odds, squared error at the mean, absolute error at the median.
    """
    dtype, kind = outputs.dtype, objective.kind
    if kind is TaskKind.CLASSIFICATION:
        counts = torch.bincount(targets.flatten(), minlength=outputs.shape[-1]).double()
        if isinstance(objective, Classification) and objective.class_weights is not None:
            counts *= objective.class_weights
        return [(counts / counts.sum()).clamp_min(_LEAST_SHARE).log().to(dtype)]
    if kind is TaskKind.MULTI_LABEL:
        shares = targets.double().mean(dim=0).clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
        return [shares.logit().to(dtype)]
    wide = targets.double()
    return [wide.mean(dim=0).to(dtype), wide.median(dim=0).values.to(dtype)]
