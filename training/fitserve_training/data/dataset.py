"""Data as tensors that live on the device. Shapes: N examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fitserve_training.data.buckets import padded_length

_TOKENS_PER_CHUNK = 8192
"""Padded sequences are evaluated in chunks of about so many tokens."""


class Batch(NamedTuple):
    """Examples of one step: `inputs` in the order of the model's inputs, each (B, …), and `targets` (B, …)."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


@dataclass(frozen=True)
class Split:
    """Examples with their targets, all on one device.

    Args:
        inputs: Each (N, …).
        targets: (N, …).
        lengths: For padded sequences (N, S): how much of each is no padding, int64 (N,) on the CPU. A batch is then cut
            to its longest.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Batch:
        """Gathers the examples at `indices`, int64 (B,), on the split's own device."""
        inputs = tuple(x.index_select(0, indices) for x in self.inputs)
        if self.lengths is not None:
            longest = int(self.lengths.index_select(0, indices.cpu()).max())
            length = padded_length(longest, self.inputs[0].shape[1])
            inputs = tuple(x[:, :length] for x in inputs)
        return Batch(inputs, self.targets.index_select(0, indices))

    def whole(self) -> Batch:
        """Gives all examples in order, without a copy."""
        return Batch(self.inputs, self.targets)

    def chunks(self, size: int) -> Iterator[Batch]:
        """Gives every example once, at most `size` at a time; in order, padded sequences by length."""
        if self.lengths is None:
            for start in range(0, len(self), size):
                end = start + size
                yield Batch(tuple(x[start:end] for x in self.inputs), self.targets[start:end])
            return
        order = self.lengths.argsort(stable=True).to(self.targets.device)
        for indices in torch.split(order, min(size, max(1, _TOKENS_PER_CHUNK // self.inputs[0].shape[1]))):
            yield self.take(indices)

    def to(self, device: torch.device) -> Split:
        """Copies the split to `device`; gives the same tensors where they are there already."""
        inputs = tuple(x.to(device, non_blocking=True) for x in self.inputs)
        return Split(inputs, self.targets.to(device), self.lengths)


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
        files: What a model trained on it is of no use without, by file name, for example its tokenizer.
    """

    name: str
    source: str
    train: Split
    held_out: Split
    class_names: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


def split_sha256(split: Split) -> str:
    """Gives the SHA-256 of a split's tensors: dtype, shape and row-major bytes, the inputs first."""
    digest = hashlib.sha256()
    for tensor in (*split.inputs, split.targets):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
