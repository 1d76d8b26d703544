"""Which device a run uses, and a clock that waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fitserve_training.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """Turns `auto`, `cpu`, `cuda` or `cuda:N` into a device that works here.

    Raises:
        UsageError: the device is unknown or not there; never falls back silently.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"setting 'device': expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        _check_cuda(name, device)
        return torch.device("cuda", device.index or 0)
    return torch.device("cpu")


def _check_cuda(name: str, device: torch.device) -> None:
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no working NVIDIA GPU"
        raise UsageError(f"setting 'device': {name!r} is not available: {why}; use --device cpu or auto")
    if (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"setting 'device': expected cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {name!r}")


def device_title(device: torch.device) -> str:
    """Names the device for people: the GPU's name, or the CPU with its thread count."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    count = torch.get_num_threads()
    return f"cpu ({count} thread{'s' if count > 1 else ''})"


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Lets torch use `count` threads for an operation, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def now(device: torch.device) -> float:
    """Reads the clock in seconds after the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
