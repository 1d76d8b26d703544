"""A split's inputs as batches have them, all at once, for readers that want one array. Shapes: N examples."""

from __future__ import annotations

import tempfile
from math import prod
from typing import Final

import numpy as np
import torch

from fitserve_training.data.dataset import Split
from fitserve_training.data.store import cache_folder
from fitserve_training.data.store.array_file import Array

_MOST_IN_MEMORY: Final = 256 << 20
_ROWS_AT_ONCE: Final = 256


def batch_array(split: Split, place: int) -> Array:
    """Gives an input of all examples, (N, …), in order; a large one in a temporary file that is mapped.

    Args:
        split: On the CPU.
        place: Of the input.

    Raises:
        UsageError: the disk is full.
    """
    shape, dtype = (len(split), *split.input_shapes[place]), split.input_dtypes[place]
    is_as_kept = split.rows is None and split.inputs[place].dtype == dtype
    byte_count = prod(shape) * dtype.itemsize
    if is_as_kept or byte_count <= _MOST_IN_MEMORY:
        whole: Array = split.whole().inputs[place].numpy()
        return whole
    elements = torch.empty(0, dtype=dtype).numpy().dtype
    with cache_folder.room_for(byte_count, "held-out examples") as folder, tempfile.TemporaryFile(dir=folder) as file:
        for rows in torch.split(torch.arange(len(split)), _ROWS_AT_ONCE):
            file.write(split.subset(rows).whole().inputs[place].contiguous().numpy().data)
        file.flush()
        return np.memmap(file, elements, "r", shape=shape)
