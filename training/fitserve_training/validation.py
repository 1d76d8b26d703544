"""The examples that a run selects by: when it stops, and which weights it keeps. They are not trained on.

The held-out examples decide nothing, so that their figures are those of examples that nobody has seen.
Shapes: N training examples, C classes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.errors import UsageError
from fitserve_training.seeding import generator

_UNUSED = (
    "validation: {:,} examples of the data's own split are neither trained on nor tested on, for the run selects "
    "nothing; --set keep_weights=best or patience would select by them"
)


def with_validation(data: DataSet, config: RunConfig) -> tuple[DataSet, str]:
    """Sets a share of the training examples aside where the run selects and the data has no validation split.

    Returns:
        The data, with a validation split if and only if the run selects, and a line about it for people.

    Raises:
        UsageError: there are too few training examples.
    """
    if not config.is_selecting:
        unused = "" if data.validation is None else _UNUSED.format(len(data.validation))
        return replace(data, validation=None), unused
    purposes = ["when to stop"] * (config.patience > 0) + ["which weights are kept"] * (config.keep_weights == "best")
    if data.validation is not None:
        return (
            data,
            f"validation: {len(data.validation):,} examples of the data's own split say {' and '.join(purposes)}",
        )
    targets = data.train.targets.cpu()
    chosen = validation_places(targets, config.validation_share, config.seed)
    if len(chosen) == 0:
        raise UsageError(
            f"data {data.name}: {len(targets)} training examples are too few to set any aside for patience and "
            "keep_weights=best, for each class needs one to train on; leave these settings out, or add examples"
        )
    is_train = torch.ones(len(targets), dtype=torch.bool)
    is_train[chosen] = False
    split = replace(
        data, train=rows_of(data.train, is_train.nonzero().flatten()), validation=rows_of(data.train, chosen)
    )
    line = f"validation: {len(chosen):,} of {len(targets):,} training examples say {' and '.join(purposes)}"
    return split, f"{line} (validation_share {config.validation_share:g})"


def validation_places(targets: Tensor, share: float, seed: int) -> Tensor:
    """Draws places of examples, int64 in ascending order; the same seed draws the same.

    One example of each class or label is always trained on. The rest are drawn evenly over the classes.

    Args:
        targets: On the CPU, int64 (N,) for classes, bool (N, C) for labels, other (N, …) for values.
        share: Share of N that is drawn, as far as the rest has so many; at least one.
        seed: Root seed.
    """
    order = torch.randperm(len(targets), generator=generator(seed, "data", "validation"))
    is_free = torch.ones(len(targets), dtype=torch.bool)
    is_free[_first_of_each(targets[order])] = False
    free = order[is_free]
    if _are_classes(targets):
        free = free[targets[free].argsort(stable=True)]
    count = min(max(round(len(targets) * share), 1), len(free))
    drawn = free[((torch.arange(count, dtype=torch.float64) + 0.5) * len(free) / max(count, 1)).long()]
    return drawn.sort().values


def _are_classes(targets: Tensor) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point()


def _first_of_each(targets: Tensor) -> Tensor:
    """Finds the first place of each class or label; of values the first of all."""
    if _are_classes(targets):
        classes, numbers = torch.unique(targets, return_inverse=True)
        first = torch.full((len(classes),), len(targets))
        return first.scatter_reduce_(0, numbers, torch.arange(len(targets)), "amin")
    if targets.ndim == 2 and targets.dtype == torch.bool:
        return targets.byte().argmax(dim=0)[targets.any(dim=0)]
    return torch.zeros(1, dtype=torch.int64)


def rows_of(split: Split, places: Tensor) -> Split:
    """Chooses the examples at `places`, int64 on the CPU; those of a mapped file stay there, others are copied."""
    if split.rows is not None:
        return split.subset(places)
    there = places.to(split.targets.device)
    inputs = tuple(x.index_select(0, there) for x in split.inputs)
    return replace(split.subset(places), inputs=inputs, rows=None)
