"""An empty cache for inductor, so that no contestant is compiled from what another one left."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Final

CACHE_VARIABLE: Final = "FITSERVE_BENCH_CACHE_DIR"
"""Names the folder in which each contestant has its own; without it the user's own cache stays in use."""

_INDUCTOR: Final = "TORCHINDUCTOR_CACHE_DIR"
_TRITON: Final = "TRITON_CACHE_DIR"


def empty_compiler_cache() -> None:
    """Gives inductor a new folder, and drops what it holds in memory; what is compiled already goes on.

    Does nothing where the process was not given a folder for it.
    """
    root = os.environ.get(CACHE_VARIABLE)
    if root is None:
        return
    os.environ[_INDUCTOR] = tempfile.mkdtemp(dir=root)
    os.environ.pop(_TRITON, None)  # inductor puts it beneath its own folder
    inductor = sys.modules.get("torch._inductor.utils")
    clear = getattr(inductor, "clear_caches", None)  # private: a torch without it has an empty folder all the same
    if clear is not None:
        clear()
