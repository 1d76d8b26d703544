"""By how much a piece of work raises this process's peak of memory (Linux)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

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


def _resident(name: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
