"""Tensors over arrays of rows."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fitserve_training.data.store.array_file import Array


def tensor_of(array: Array) -> Tensor:
    """Makes a tensor on the memory of an array, which may be mapped read-only; nothing may write to it."""
    with warnings.catch_warnings():
        # torch knows no tensors that cannot be written, and warns.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
