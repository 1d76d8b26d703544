"""Data as tensors, on the device or in mapped files that batches are gathered from. Shapes: N examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fitserve_training.data.buckets import padded_length

_TOKENS_PER_CHUNK = {"cpu": 1024, "cuda": 65536}
"""Padded sequences are evaluated in chunks of at most so many tokens: on a CPU what its cache holds, on a GPU what
keeps it busy."""

_VALUES_PER_CHUNK = 1 << 22
"""Other examples in chunks of at most so many values of an input: pictures of 224 x 224 fill memory otherwise."""

_LARGEST_BYTE = 255
_ROWS_AT_ONCE = 1024


class Batch(NamedTuple):
    """Examples of one step: `inputs` in the order of the model's inputs, each (B, …), and `targets` (B, …)."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


@dataclass(frozen=True)
class Split:
    """Examples with their targets.

    Batches are on the device of `targets`. The inputs may lie elsewhere and be larger than memory: with `rows`, they
    are gathered from a mapped file, batch by batch.

    Args:
        inputs: Each (N, …); with `rows`, each (M, …), of which the split has some.
        targets: (N, …).
        lengths: For padded sequences (N, S): how much of each is no padding, int64 (N,) on the CPU. A batch is then cut
            to its longest.
        is_bytes: Whether inputs are kept as uint8 and stand for float32 in steps of 1/255, which batches then hold.
        rows: Which of the inputs' rows the examples are, int64 (N,), on the inputs' device; None means all in order.
        dtypes: Of each input in batches, where it is kept in smaller elements; empty means as it is kept.
        sums: Of inputs kept as bytes: sum and sum of squares by channel, int64 (M, C, 2); None where unknown.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    lengths: Tensor | None = None
    is_bytes: bool = False
    rows: Tensor | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    sums: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one example, per input."""
        return tuple(tuple(x.shape[1:]) for x in self.inputs)

    @property
    def input_dtypes(self) -> tuple[torch.dtype, ...]:
        """Elements of batches, per input."""
        if self.is_bytes:
            return (torch.float32,) * len(self.inputs)
        return self.dtypes or tuple(x.dtype for x in self.inputs)

    @property
    def byte_count(self) -> int:
        """Bytes of all inputs as they are kept."""
        return len(self) * sum(x[:0].element_size() * prod(x.shape[1:]) for x in self.inputs)

    def take(self, indices: Tensor) -> Batch:
        """Gathers the examples at `indices`, int64 (B,), on the split's own device."""
        return self.batch(self.kept(indices), indices)

    def kept(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Gathers inputs at `indices` as they are kept, each (B, …), where they are kept; long sequences are cut."""
        rows = indices.to(self.inputs[0].device)
        rows = rows if self.rows is None else self.rows.index_select(0, rows)
        width = self._width(indices)
        return tuple((x if width is None else x[:, :width]).index_select(0, rows) for x in self.inputs)

    def _width(self, indices: Tensor) -> int | None:
        """Gives how many tokens the longest of some sequences has, with the padding of its bucket; None for others."""
        if self.lengths is None:
            return None
        longest = int(self.lengths.index_select(0, indices.cpu()).max())
        return padded_length(longest, self.inputs[0].shape[1])

    def batch(self, kept: tuple[Tensor, ...], indices: Tensor) -> Batch:
        """Makes the batch of examples at `indices` from their inputs as they are kept."""
        return Batch(self._values(kept), self.targets.index_select(0, indices.to(self.targets.device)))

    def chunk_order(self) -> Tensor | None:
        """Gives the places of the examples in the order of `chunks`, int64 (N,); None where that is their own."""
        return None if self.lengths is None else self.lengths.argsort(stable=True).to(self.targets.device)

    def whole(self) -> Batch:
        """Gives all examples in order, without a copy where they are kept so."""
        inputs = self.inputs if self.rows is None else tuple(x.index_select(0, self.rows) for x in self.inputs)
        return Batch(self._values(inputs), self.targets)

    def chunks(self, size: int) -> Iterator[Batch]:
        """Gives every example once, at most `size` at a time, fewer where they are large.

        In order; padded sequences by length and cut to it.
        """
        if self.lengths is None or (order := self.chunk_order()) is None:
            size = self._bounded(size)
            for start in range(0, len(self), size):
                end = start + size
                yield Batch(self._values(self._kept_span(start, end)), self.targets[start:end])
            return
        lengths = self.lengths.sort().values.tolist()
        for start, end in _spans(lengths, size, _TOKENS_PER_CHUNK[self.targets.device.type]):
            rows = places = order[start:end]
            if self.rows is not None:
                rows = self.rows.index_select(0, rows.to(self.rows.device))
            width = max(1, lengths[end - 1])
            inputs = tuple(x.index_select(0, rows.to(x.device))[:, :width] for x in self.inputs)
            yield Batch(self._values(inputs), self.targets.index_select(0, places))

    def _bounded(self, size: int) -> int:
        """Bounds how many examples are taken at once by how large they are."""
        largest = max(prod(shape) for shape in self.input_shapes)
        return max(1, min(size, _VALUES_PER_CHUNK // max(1, largest)))

    def _kept_span(self, start: int, end: int) -> tuple[Tensor, ...]:
        if self.rows is None:
            return tuple(x[start:end] for x in self.inputs)
        rows = self.rows[start:end]
        return tuple(x.index_select(0, rows) for x in self.inputs)

    def subset(self, places: Tensor) -> Split:
        """Chooses the examples at `places`, int64 (B,), in that order; the inputs are shared and not copied."""
        places = places.to(self.inputs[0].device)
        rows = places if self.rows is None else self.rows.index_select(0, places)
        lengths = None if self.lengths is None else self.lengths.index_select(0, places.cpu())
        targets = self.targets.index_select(0, places.to(self.targets.device))
        return replace(self, targets=targets, lengths=lengths, rows=rows)

    def to(self, device: torch.device) -> Split:
        """Copies the examples to `device`; gives the same tensors where they are there already."""
        if self.inputs[0].device == device:
            return replace(self, targets=self.targets.to(device))
        inputs = tuple(self._moved(x, device) for x in self.inputs)
        return replace(self, inputs=inputs, targets=self.targets.to(device), rows=None, sums=None)

    def _moved(self, values: Tensor, device: torch.device) -> Tensor:
        if self.rows is None:
            return values.to(device, non_blocking=True)
        moved = torch.empty((len(self), *values.shape[1:]), dtype=values.dtype, device=device)
        size = self._bounded(_ROWS_AT_ONCE)
        for rows, place in zip(torch.split(self.rows, size), torch.split(moved, size), strict=True):
            place.copy_(values.index_select(0, rows))
        return moved

    def packed(self) -> Split:
        """Keeps inputs as bytes, a fourth of the memory to gather from, where batches are the same to the last bit."""
        is_fit = not self.is_bytes and self.lengths is None and self.rows is None
        if not is_fit or not all(_are_greys(x) for x in self.inputs):
            return self
        return replace(self, inputs=tuple(map(_to_bytes, self.inputs)), is_bytes=True)

    def _values(self, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        there = tuple(x.to(self.targets.device) for x in kept)
        if self.is_bytes:
            return tuple(_from_bytes(x) for x in there)
        return tuple(x.to(dtype) for x, dtype in zip(there, self.input_dtypes, strict=True))


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
    wide = values.to(torch.float32)
    if wide.device.type == "cpu":
        return wide.div_(_LARGEST_BYTE)
    # A GPU divides by a number as it multiplies by its inverse; by a tensor it divides, to the same bits as a CPU.
    return wide.div_(torch.full((), _LARGEST_BYTE, dtype=torch.float32, device=wide.device))


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
        validation: What a run selects by, where the data has such a split of its own.
        ignored: Settings by dotted key that this data has no use for, though its kind has.
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
    validation: Split | None = None
    ignored: tuple[str, ...] = ()


def split_sha256(split: Split) -> str:
    """Gives the SHA-256 of a split's tensors as batches have them: dtype, shape, row-major bytes, the inputs first."""
    digest = hashlib.sha256()
    count, size = len(split), split._bounded(_ROWS_AT_ONCE)
    for place, (shape, dtype) in enumerate(zip(split.input_shapes, split.input_dtypes, strict=True)):
        digest.update(f"{_numpy_dtype(dtype)}{(count, *shape)}".encode())
        for start in range(0, count, size):
            rows = split._values(split._kept_span(start, start + size))[place]
            digest.update(rows.detach().cpu().contiguous().numpy().data)
    targets = split.targets.detach().cpu().contiguous().numpy()
    digest.update(f"{targets.dtype.str}{targets.shape}".encode())
    digest.update(targets.data)
    return digest.hexdigest()


def _numpy_dtype(dtype: torch.dtype) -> str:
    found: str = torch.empty(0, dtype=dtype).numpy().dtype.str
    return found
