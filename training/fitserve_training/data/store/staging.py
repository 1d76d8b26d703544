"""Batches gathered ahead of time by a thread, where the device does not hold all examples. Shapes: B of a batch.

A ring of buffers: the thread gathers a batch as it is kept into a free buffer, the loop copies it to the device and
makes it a batch there. On a GPU the buffers are page-locked, so the copy runs beside the steps, and a buffer is free
again once its copy has ended. Source: the PyTorch notes on CUDA semantics, "Use pinned memory buffers".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Queue
from typing import Final, TypeAlias

import torch
from torch import Tensor

from fitserve_training.data.dataset import Batch, Split

_BUFFER_COUNT: Final = 4
Kept: TypeAlias = tuple[Tensor, ...]


class _Buffer:
    """Memory for the inputs of one batch, and what tells when the device has copied them."""

    def __init__(self, is_pinned: bool) -> None:
        self._is_pinned = is_pinned
        self._flat: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def fill(self, split: Split, indices: Tensor) -> Kept:
        """Gathers a batch, once the device has copied the last one."""
        kept = split.kept(indices)
        if not self._is_pinned:
            return kept
        if self._copied is not None:
            self._copied.synchronize()
        if [len(flat) for flat in self._flat] < [x.numel() for x in kept]:
            self._flat = [torch.empty(x.numel(), dtype=x.dtype, pin_memory=True) for x in kept]
        places = [flat[: x.numel()].view(x.shape) for flat, x in zip(self._flat, kept, strict=True)]
        for place, x in zip(places, kept, strict=True):
            place.copy_(x)
        return tuple(places)

    def copy_to(self, device: torch.device, kept: Kept) -> Kept:
        """Copies what `fill` gave to the device, without waiting for it."""
        if not self._is_pinned:
            return tuple(x.to(device) for x in kept)
        there = tuple(x.to(device, non_blocking=True) for x in kept)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(device))
        return there


@contextmanager
def staged(split: Split, parts: Sequence[Tensor]) -> Iterator[Iterator[Batch]]:
    """Gives the batches of `parts`, indices (B,) each, in their order; the thread ends with the context.

    Raises:
        Whatever gathering raises, at the batch that it was raised for.
    """
    device = split.targets.device
    is_over = threading.Event()
    free: Queue[_Buffer] = Queue()
    filled: Queue[tuple[_Buffer, Kept] | BaseException] = Queue()
    for _ in range(_BUFFER_COUNT):
        free.put(_Buffer(device.type == "cuda"))
    on_host = [part.cpu() for part in parts]

    def gather() -> None:
        try:
            for indices in on_host:
                buffer = free.get()
                if is_over.is_set():
                    return
                filled.put((buffer, buffer.fill(split, indices)))
        except BaseException as error:  # raised again where the batch is asked for
            filled.put(error)

    def batches() -> Iterator[Batch]:
        for indices in parts:
            found = filled.get()
            if isinstance(found, BaseException):
                raise found
            buffer, kept = found
            batch = split.batch(buffer.copy_to(device, kept), indices)
            free.put(buffer)
            yield batch

    thread = threading.Thread(target=gather, name="staging", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        is_over.set()
        free.put(_Buffer(is_pinned=False))  # the thread may be waiting for one
        thread.join()
