"""By how much a piece of work raises this process's peak of memory, and what it takes of a GPU's (Linux)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")

_RESET_PEAK: Final = "5"
"""Sets the peak to what is resident now. Source: proc_pid_clear_refs(5)."""


class PeakMemory:
    """Starts a measurement of the peak when it is made."""

    def __init__(self) -> None:
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._before_bytes = _resident("VmRSS")
        except OSError:
            self._before_bytes = None

    def growth_bytes(self) -> int | None:
        """Gives the peak since the start less what was resident then; None where the system does not tell."""
        peak_bytes = _resident("VmHWM") if self._before_bytes is not None else None
        return None if peak_bytes is None or self._before_bytes is None else max(0, peak_bytes - self._before_bytes)


class DeviceMemory:
    """Starts a measurement of the GPU's memory in use when it is made; torch's cache is given back first."""

    def __init__(self) -> None:
        torch: Any = sys.modules.get("torch")
        self._torch, self._has_device = torch, torch is not None and torch.cuda.is_available()
        if self._has_device:
            self._torch.cuda.empty_cache()
            self._before_bytes = self._used_bytes()

    def growth_bytes(self) -> int | None:
        """Gives what is in use now, by whomever, less what was at the start; None where torch sees no GPU.

        Allocators keep what they once had, so that this is the peak of theirs.
        """
        return max(0, self._used_bytes() - self._before_bytes) if self._has_device else None

    def _used_bytes(self) -> int:
        free_bytes, total_bytes = self._torch.cuda.mem_get_info()
        return int(total_bytes - free_bytes)


def _resident(name: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
