"""One root seed, and every stream of random numbers derived from it by name.

Streams are derived per epoch, so a resumed run needs no generator state: epoch 7 draws the same numbers whether the
process that runs it also ran epochs 1 to 6 or not.
"""

from __future__ import annotations

import hashlib
import os

import torch


def derive(seed: int, *names: str | int) -> int:
    """Derives a 63-bit seed for the stream `names` of the root `seed`; other names give independent streams."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Makes a generator on `device` for one stream."""
    return torch.Generator(device).manual_seed(derive(seed, *names))


def seed_global(seed: int, *names: str | int) -> None:
    """Seeds torch's global generators (all devices), which initialisation and dropout draw from."""
    torch.manual_seed(derive(seed, *names))


def set_determinism(device: torch.device, is_deterministic: bool) -> None:
    """Says whether a GPU gives the same bits each time, or may choose its quickest way; a CPU's are the same anyway.

    Has to be called before cuBLAS is used for the first time, which reads its workspace setting then.
    """
    if device.type != "cuda":
        return
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not is_deterministic
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    # Nothing here reads memory that it has not written; filling it first costs a launch for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
