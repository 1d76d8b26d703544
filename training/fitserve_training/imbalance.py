"""Classes of unlike size: the share of the largest, weights that make up for it, and the loss that a run minimises.

Shapes: N training examples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fitserve_contract.tasks import TaskKind
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet
from fitserve_training.errors import UsageError
from fitserve_training.objectives import Classification, Objective
from fitserve_training.recipe import Recipe

BALANCED = "balanced"
_TOLD_SHARE = 0.8
"""Above this, a model that always answers the largest class looks good by accuracy."""


def balanced_weights(targets: Tensor, class_count: int) -> Tensor:
    """Computes n / (k * n_c) for each class: n examples, n_c of class c, k classes that have any; 0 for the others.

    Over the examples the weights have a mean of 1. Source: scikit-learn, `compute_class_weight("balanced")`.

    Args:
        targets: int64 (N,), of the training examples alone.
        class_count: C.

    Returns:
        float32 (C,) on the device of the targets.
    """
    counts = torch.bincount(targets, minlength=class_count).double()
    present = (counts > 0).sum()
    return torch.where(counts > 0, len(targets) / (present * counts), 0.0).float()


def training_objective(recipe: Recipe, config: RunConfig, data: DataSet, device: torch.device) -> Objective:
    """Returns what a run minimises: the recipe's loss, smoothed and weighted as the settings say.

    Args:
        recipe: Fitted to the data.
        config: Of the run.
        data: Its training examples give the weights.
        device: Of the run.

    Raises:
        UsageError: the recipe has no cross-entropy that could be smoothed or weighted.
    """
    for key, plain in (("label_smoothing", 0.0), ("class_weights", "none")):
        if getattr(config, key) != plain:
            _check_classifies(recipe, key, plain)
    if not config.label_smoothing and config.class_weights != BALANCED:
        return recipe.objective
    weights = None
    if config.class_weights == BALANCED:
        weights = balanced_weights(data.train.targets, len(data.class_names)).to(device)
    return Classification(config.label_smoothing, weights)


def imbalance_line(recipe: Recipe, config: RunConfig, data: DataSet) -> str:
    """Says which class most of the training examples have, and the cure; empty where none has so many."""
    if type(recipe.objective) is not Classification or config.class_weights == BALANCED:
        return ""
    counts = torch.bincount(data.train.targets, minlength=len(data.class_names))
    largest = int(counts.argmax())
    share = int(counts[largest]) / len(data.train)
    if share <= _TOLD_SHARE:
        return ""
    return (
        f"classes: {share:.1%} of the training examples are {data.class_names[largest]!r}; judge by balanced accuracy "
        "and macro F1, or weigh the classes alike with --set class_weights=balanced"
    )


def _check_classifies(recipe: Recipe, key: str, plain: float | str) -> None:
    if type(recipe.objective) is Classification:
        return
    if recipe.objective.kind is not TaskKind.CLASSIFICATION:
        raise UsageError(f"setting {key!r}: recipe {recipe.name} does not classify one of n; leave it at {plain}")
    raise UsageError(
        f"setting {key!r}: the loss of recipe {recipe.name} is its own; leave it at {plain}, and change the loss there"
    )
