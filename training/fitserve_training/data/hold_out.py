"""Which examples are held out where nobody split the data. Shapes: N examples."""

from __future__ import annotations

import torch
from torch import Tensor

from fitserve_training.data.dataset import Split
from fitserve_training.seeding import generator


def hold_out(inputs: tuple[Tensor, ...], targets_N: Tensor, share: float, seed: int) -> tuple[Split, Split]:
    """Splits examples in memory into those trained on and those held out, as `hold_out_rows` says."""
    train, held_out = hold_out_rows(targets_N, share, seed)
    return _rows(inputs, targets_N, train), _rows(inputs, targets_N, held_out)


def hold_out_rows(targets_N: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Chooses the examples trained on and those held out; the same seed gives the same ones.

    Args:
        targets_N: (N,) of int64 class indices are split class by class, so that every class of at least two examples
            is on both sides; others (N, …) as a whole.
        share: What is held out, above 0 and below 1; at least one example is, and one is trained on.
        seed: Root seed.

    Returns:
        Places of both, int64, each in order.
    """
    stream = generator(seed, "data", "hold_out")
    order_N = torch.randperm(len(targets_N), generator=stream)
    is_classes = targets_N.ndim == 1 and not targets_N.is_floating_point()
    groups = [order_N[targets_N[order_N] == c] for c in torch.unique(targets_N)] if is_classes else [order_N]
    counts = [min(max(round(len(group) * share), 1), len(group) - 1) for group in groups]
    held_out = torch.cat([group[:count] for group, count in zip(groups, counts, strict=True)]).sort().values
    is_train = torch.ones(len(targets_N), dtype=torch.bool)
    is_train[held_out] = False
    return is_train.nonzero().flatten(), held_out


def _rows(inputs: tuple[Tensor, ...], targets: Tensor, rows: Tensor) -> Split:
    return Split(tuple(x[rows] for x in inputs), targets[rows])
