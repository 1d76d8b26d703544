"""Data as tensors that live on the device. Shapes: N examples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Examples of one step: `inputs` in the order of the model's inputs, each (B, …), and `targets` (B, …)."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


@dataclass(frozen=True)
class Split:
    """Examples with their targets, all on one device: `inputs` each (N, …), `targets` (N, …)."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Batch:
        """Gathers the examples at `indices`, int64 (B,), on the split's own device."""
        return Batch(tuple(x.index_select(0, indices) for x in self.inputs), self.targets.index_select(0, indices))

    def whole(self) -> Batch:
        """Gives all examples in order, without a copy."""
        return Batch(self.inputs, self.targets)

    def to(self, device: torch.device) -> Split:
        """Copies the split to `device`; gives the same tensors where they are there already."""
        return Split(tuple(x.to(device, non_blocking=True) for x in self.inputs), self.targets.to(device))


@dataclass(frozen=True)
class DataSet:
    """Training and held-out examples.

    Args:
        name: The value of `data.name` that gives this data again.
        source: Where it comes from, one line for people.
        train: What is trained on.
        held_out: What is tested on, and exported with.
        class_names: In class order; empty for regression.
        checksums: SHA-256 of the files it was read from, by file name.
        note: Said before training, for example that a published band does not apply.
    """

    name: str
    source: str
    train: Split
    held_out: Split
    class_names: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def split_sha256(split: Split) -> str:
    """Gives the SHA-256 of a split's tensors: dtype, shape and row-major bytes, the inputs first."""
    digest = hashlib.sha256()
    for tensor in (*split.inputs, split.targets):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
