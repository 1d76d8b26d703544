"""Mean and standard deviation of a split's examples, block by block. Shapes: M pictures kept, C channels."""

from __future__ import annotations

import torch
from torch import Tensor

from fitserve_training.data.dataset import Split

_ROWS_AT_ONCE = 1024
_LARGEST_BYTE = 255


def moments(split: Split, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Computes the mean and the standard deviation (of all, not of a sample) of the first input, float64.

    The same values give the same bits wherever they are kept.

    Args:
        split: Of no padded sequences.
        axes: Of (N, …) that are averaged over, the first among them.
    """
    if split.sums is not None and axes == [0, 2, 3]:
        return _of_bytes(split, split.sums)
    total, count = torch.zeros(()), 0
    for batch in split.chunks(_ROWS_AT_ONCE):
        wide = batch.inputs[0].double()
        total = total + wide.sum(dim=axes)
        count += wide.numel() // total.numel()
    mean = total / count
    square = torch.zeros_like(mean)
    shape = [1 if axis in axes else size for axis, size in enumerate((1, *split.input_shapes[0]))]
    for batch in split.chunks(_ROWS_AT_ONCE):
        square += (batch.inputs[0].double() - mean.reshape(shape)).square_().sum(dim=axes)
    return mean, (square / count).sqrt_()


def _of_bytes(split: Split, sums_MC2: Tensor) -> tuple[Tensor, Tensor]:
    """Computes them from whole numbers: 2**63 is the sum of squares of a million pictures of 11,000 pixels a side."""
    chosen = sums_MC2 if split.rows is None else sums_MC2.index_select(0, split.rows)
    count = len(split) * split.input_shapes[0][1] * split.input_shapes[0][2]
    found = [(int(first), int(second)) for first, second in chosen.sum(dim=0).tolist()]
    scale = count * _LARGEST_BYTE
    mean = [first / scale for first, _ in found]
    # count * second - first**2 is exact in whole numbers, and so never below 0.
    sd = [(count * second - first * first) ** 0.5 / scale for first, second in found]
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(sd, dtype=torch.float64)


def column_of(split: Split, place: int) -> Tensor:
    """Gathers one column of the first input, (N,) of (N, D); all columns together may be more than memory."""
    values = split.inputs[0][:, place]
    return values if split.rows is None else values.index_select(0, split.rows)
