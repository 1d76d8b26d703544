"""Where a split lies while a run uses it: on the device where that holds it, otherwise gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from fitserve_training.data.dataset import Split

_SHARE_OF_DEVICE: Final = 0.5
"""Of a GPU's free memory that examples may take; the rest is the model's, its gradients' and its activations'."""

_SHARE_OF_MEMORY: Final = 0.5


def placed(split: Split, device: torch.device) -> Split:
    """Places a split for batches on `device`; those that do not fit stay where they are and are to be staged."""
    if device.type == "cpu" or split.byte_count <= _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return split.to(device)
    return replace(split, targets=split.targets.to(device))


def is_to_be_staged(split: Split) -> bool:
    """Says whether batches are worth gathering ahead: from another device, or from files larger than memory."""
    if split.inputs[0].device != split.targets.device:
        return True
    return split.rows is not None and split.byte_count > _SHARE_OF_MEMORY * _available_bytes()


def _available_bytes() -> float:
    """Reads what the machine has left and what the control group allows, as far as either can be read."""
    return min([*_group_limits(), *_left_on_machine()], default=float("inf"))


def _left_on_machine() -> Iterator[float]:
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        yield from (float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _group_limits() -> Iterator[float]:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = f"memory/{group}/memory.limit_in_bytes" if controllers else f"{group}/memory.max"
            with suppress(OSError, ValueError):  # "max" means none
                yield float(Path("/sys/fs/cgroup", name.lstrip("/")).read_text(encoding="ascii"))
