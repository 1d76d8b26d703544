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
        for inputs, targets in split.chunks(_CHUNK):
            outputs = model(*inputs)
            sums += objective.sums(outputs, targets, objective.loss(outputs, targets))
    model.train(was_training)
    return objective.metrics(sums.tolist(), len(split))
