"""Data parallelism under `torchrun`: every worker has the whole model and its part of each batch.

The loss of a part counts as much as its share of the batch, and gradients are added up, so that N workers take the
steps that one would take on the same batches.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fitserve_training.errors import UsageError


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Args:
        rank: From 0; worker 0 leads: it alone writes and speaks.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    def part(self, indices: Tensor) -> Tensor:
        """Gives this worker's part of a batch's indices (B,); the parts differ by one example at most."""
        return torch.tensor_split(indices, self.count)[self.rank]

    def add_up(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over all workers."""
        if self.count > 1:
            dist.all_reduce(tensor)

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all workers, in one message; a missing one counts as zero."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def wait(self) -> None:
        """Waits until every worker is here."""
        if self.count > 1:
            dist.barrier()


def local_device(name: str) -> str:
    """Gives each worker its own GPU where the setting `device` names no number."""
    local_rank = os.environ.get("LOCAL_RANK")
    is_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{local_rank}" if local_rank is not None and is_cuda else name


@contextmanager
def joined_workers(device: torch.device) -> Iterator[Workers]:
    """Joins the workers that `torchrun` started: NCCL between GPUs, gloo between CPUs; one worker without `torchrun`.

    Raises:
        UsageError: `torchrun`'s environment variables are there only in part.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"environment: expected torchrun's {', '.join(missing)} beside WORLD_SIZE={count}, found none")
    # An optimizer imports it. Once there is a group, it would keep that for good, and threads that a group leaves
    # behind may end the interpreter by SIGABRT while it is torn down: one run in ten beside two busy loops.
    importlib.import_module("torch._dynamo")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
