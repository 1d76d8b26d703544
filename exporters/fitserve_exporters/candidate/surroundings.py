"""What of torch an export depends on, the same whatever the caller's code has set."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

import torch

_TURN: Final = threading.RLock()
"""torch.export patches torch for the whole process: of several threads one exports, the others wait."""


@contextlib.contextmanager
def own_surroundings() -> Iterator[None]:
    """Takes the process's turn, keeps torch's random state, and has gradients on and new tensors on the CPU inside."""
    with _TURN, torch.random.fork_rng(), torch.set_grad_enabled(True), torch.device("cpu"):
        yield
