"""Which held-out examples are verified, at which batch sizes."""

from __future__ import annotations

from typing import Final

import numpy as np

from fitserve_exporters.candidate.candidate import Array, Candidate

LARGEST_BATCH: Final = 256
BATCHES_PER_SIZE: Final = 16
"""Small batches are repeated so often over other examples: one example alone would hardly be a sample."""

_ODD_BATCH: Final = 7


def batch_sizes(example_count: int) -> list[int]:
    """Gives the batch sizes that are verified: 1, 2, an odd number and the largest, as far as there are examples."""
    odd = min(_ODD_BATCH, example_count - 1 + example_count % 2)
    return sorted({1, min(2, example_count), odd, min(LARGEST_BATCH, example_count)})


def sampled_indices(candidate: Candidate, count: int) -> Array:
    """Draws examples of the held-out set by the candidate's seed, without repetition, in ascending order; INT64."""
    total = candidate.held_out.example_count
    drawn = np.random.default_rng(candidate.seed).choice(total, min(count, total), replace=False)
    return np.sort(drawn)
