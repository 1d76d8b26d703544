"""A model's outputs and metrics over a whole split, forward only and each example once. Shapes: N examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fitserve_training.data.dataset import Split
from fitserve_training.objectives import Objective

_CHUNK = 1024
_FIRST = 256


@dataclass(frozen=True)
class Evaluation:
    """What a split gave.

    Args:
        metrics: The objective's.
        outputs: Of every example, (N, …), in the order of the split and on its device.
    """

    metrics: dict[str, float]
    outputs: Tensor


def evaluate(
    model: nn.Module, objective: Objective, split: Split, autocast: torch.autocast | None = None
) -> Evaluation:
    """Evaluates every example of `split`, in evaluation mode; the model's mode is put back afterwards.

    Args:
        model: On the split's device.
        objective: Says the loss and the metrics.
        split: Sequences are taken by length, so that little is padding.
        autocast: The run's precision; None stands for that of the weights.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(objective.sum_count, dtype=torch.float64, device=split.targets.device)
    every, done = torch.empty(0), 0
    with torch.inference_mode():
        for batch in split.chunks(_CHUNK):
            outputs = _outputs(model, batch.inputs, autocast)
            sums += objective.sums(outputs, batch.targets, objective.loss(outputs, batch.targets))
            # One tensor for all: small ones that are kept would lie where the last chunk's inputs were, and the next
            # chunk's would not fit there; memory grew by a chunk with each.
            if not done:
                row_count = len(split) * len(outputs) // len(batch.targets)
                every = outputs.new_empty((row_count, *outputs.shape[1:]))
            every[done : done + len(outputs)] = outputs
            done += len(outputs)
        outputs = _in_order(every, split)
    model.train(was_training)
    metrics = objective.metrics(sums.tolist(), len(split)) | objective.figures(outputs, split.targets)
    return Evaluation(metrics, outputs)


def first_loss(model: nn.Module, objective: Objective, split: Split, autocast: torch.autocast | None = None) -> float:
    """Computes the loss of the first 256 examples that `split` gives, in evaluation mode; arguments as for `evaluate`.

    It is infinite or NaN where the weights are of no use, and costs next to nothing.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        batch = next(split.chunks(_FIRST))
        loss = objective.loss(_outputs(model, batch.inputs, autocast), batch.targets)
    model.train(was_training)
    return loss.item()


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...], autocast: torch.autocast | None) -> Tensor:
    if autocast is None:
        outputs: Tensor = model(*inputs)
        return outputs
    with autocast:
        outputs = model(*inputs)
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def _in_order(outputs: Tensor, split: Split) -> Tensor:
    if (order := split.chunk_order()) is None:
        return outputs
    restored = torch.empty_like(outputs)
    restored[order] = outputs
    return restored
