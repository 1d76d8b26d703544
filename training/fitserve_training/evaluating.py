"""Metrics of a model over a whole split, as sums over chunks."""

from __future__ import annotations

import torch
from torch import nn

from fitserve_training.data.dataset import Split
from fitserve_training.objectives import Objective

_CHUNK = 1024


def evaluate(model: nn.Module, objective: Objective, split: Split) -> dict[str, float]:
    """Gives the objective's metrics over `split`, in evaluation mode; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(objective.sum_count, dtype=torch.float64, device=split.targets.device)
    with torch.inference_mode():
        for start in range(0, len(split), _CHUNK):
            targets = split.targets[start : start + _CHUNK]
            outputs = model(*(x[start : start + _CHUNK] for x in split.inputs))
            sums += objective.sums(outputs, targets, objective.loss(outputs, targets))
    model.train(was_training)
    return objective.metrics(sums.tolist(), len(split))
