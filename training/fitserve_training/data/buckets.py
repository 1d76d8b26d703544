"""Batches of examples of like length, so that little of a batch is padding. Shapes: N examples, B of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 16
"""Lengths are rounded up to a multiple of this: few shapes for a compiler, and at most 15 tokens of padding."""


def padded_length(longest: int, most: int) -> int:
    """Rounds a length up to its bucket's, at most `most`."""
    return min(-(-longest // WIDTH) * WIDTH, most)


def bucketed_batches(lengths_N: Tensor, batch_size: int, stream: torch.Generator) -> list[Tensor]:
    """Draws an epoch's batches: every example once, each batch from one bucket as far as the numbers allow.

    Args:
        lengths_N: Length of each example, int64 on the CPU.
        batch_size: Examples per batch; only the last batch may have fewer.
        stream: Decides who is with whom, and the order of the batches.

    Returns:
        Indices, int64 (B,) each.
    """
    order_N = torch.randperm(len(lengths_N), generator=stream)
    buckets_N = (lengths_N[order_N] + WIDTH - 1) // WIDTH
    full, rest = [], []
    for bucket in torch.unique(buckets_N).tolist():
        chunks = list(torch.split(order_N[buckets_N == bucket], batch_size))
        rest += chunks[-1:] if len(chunks[-1]) < batch_size else []
        full += chunks[:-1] if len(chunks[-1]) < batch_size else chunks
    mixed = list(torch.split(torch.cat(rest), batch_size)) if rest else []
    ragged = [mixed.pop()] if mixed and len(mixed[-1]) < batch_size else []
    batches = full + mixed
    return [batches[i] for i in torch.randperm(len(batches), generator=stream).tolist()] + ragged
