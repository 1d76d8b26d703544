"""Data as tensors that live on the device. Shapes: N examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fitserve_training.data.buckets import padded_length

_TOKENS_PER_CHUNK = {"cpu": 1024, "cuda": 65536}
"""Padded sequences are evaluated in chunks of at most so many tokens: on a CPU what its cache holds, on a GPU what
keeps it busy."""

_LARGEST_BYTE = 255
_ROWS_AT_ONCE = 1024


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
        is_bytes: Whether inputs are kept as uint8 and stand for float32 in steps of 1/255, which batches then hold.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    lengths: Tensor | None = None
    is_bytes: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Batch:
        """Gathers the examples at `indices`, int64 (B,), on the split's own device."""
        inputs = self._values(tuple(x.index_select(0, indices) for x in self.inputs))
        if self.lengths is not None:
            longest = int(self.lengths.index_select(0, indices.cpu()).max())
            length = padded_length(longest, self.inputs[0].shape[1])
            inputs = tuple(x[:, :length] for x in inputs)
        return Batch(inputs, self.targets.index_select(0, indices))

    def chunk_order(self) -> Tensor | None:
        """Gives the places of the examples in the order of `chunks`, int64 (N,); None where that is their own."""
        return None if self.lengths is None else self.lengths.argsort(stable=True).to(self.targets.device)

    def whole(self) -> Batch:
        """Gives all examples in order, without a copy unless they are kept as bytes."""
        return Batch(self._values(self.inputs), self.targets)

    def chunks(self, size: int) -> Iterator[Batch]:
        """Gives every example once, at most `size` at a time; in order, padded sequences by length and cut to it."""
        if self.lengths is None or (order := self.chunk_order()) is None:
            for start in range(0, len(self), size):
                end = start + size
                yield Batch(self._values(tuple(x[start:end] for x in self.inputs)), self.targets[start:end])
            return
        lengths = self.lengths.sort().values.tolist()
        for start, end in _spans(lengths, size, _TOKENS_PER_CHUNK[self.targets.device.type]):
            rows = order[start:end]
            inputs = tuple(x.index_select(0, rows)[:, : max(1, lengths[end - 1])] for x in self.inputs)
            yield Batch(inputs, self.targets.index_select(0, rows))

    def to(self, device: torch.device) -> Split:
        """Copies the split to `device`; gives the same tensors where they are there already."""
        inputs = tuple(x.to(device, non_blocking=True) for x in self.inputs)
        return replace(self, inputs=inputs, targets=self.targets.to(device))

    def packed(self) -> Split:
        """Keeps inputs as bytes, a fourth of the memory to gather from, where batches are the same to the last bit."""
        if self.is_bytes or self.lengths is not None or not all(_are_greys(x) for x in self.inputs):
            return self
        return replace(self, inputs=tuple(map(_to_bytes, self.inputs)), is_bytes=True)

    def _values(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_from_bytes(x) for x in inputs) if self.is_bytes else inputs


def _spans(lengths: list[int], most_rows: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Cuts rows that are in the order of their lengths into spans, each no larger than allowed once it is padded."""
    start = 0
    for end, length in enumerate(lengths):
        if end > start and (end - start == most_rows or (end + 1 - start) * length > most_tokens):
            yield start, end
            start = end
    if lengths:
        yield start, len(lengths)


def _are_greys(values: Tensor) -> bool:
    """Says whether pictures (N, C, H, W) hold nothing but float32 multiples of 1/255 from 0 to 1."""
    if values.ndim != 4 or values.dtype != torch.float32 or values.device.type != "cpu":
        return False
    rows = torch.split(values, _ROWS_AT_ONCE)
    return all(torch.equal(_from_bytes(_to_bytes(row.clamp(0, 1))), row) for row in rows)


def _to_bytes(values: Tensor) -> Tensor:
    return torch.cat([(row * _LARGEST_BYTE).round_().to(torch.uint8) for row in torch.split(values, _ROWS_AT_ONCE)])


def _from_bytes(values: Tensor) -> Tensor:
    return values.to(torch.float32).div_(_LARGEST_BYTE)


class ServedRows(Protocol):
    """Examples of a data set as callers of the model give them."""

    def train(self, places: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Gives training examples by their places in the split, input name to (B, …); texts as `bytes` objects."""

    def held_out(self) -> dict[str, np.ndarray[Any, Any]]:
        """Gives all held-out examples in the order of the split."""


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
        served: The examples as callers give them, where the served graph makes the inputs from them.
    """

    name: str
    source: str
    train: Split
    held_out: Split
    class_names: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    served: ServedRows | None = None


def split_sha256(split: Split) -> str:
    """Gives the SHA-256 of a split's tensors: dtype, shape and row-major bytes, the inputs first."""
    digest = hashlib.sha256()
    for tensor in (*split.inputs, split.targets):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
