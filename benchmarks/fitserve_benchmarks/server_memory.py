"""How much the memory of a server's processes grows for a while, at its peak."""

from __future__ import annotations

from pathlib import Path

from fitserve_benchmarks.processes import children
from fitserve_benchmarks.programs import RunningService


def reset_peak(service: RunningService) -> dict[int, float]:
    """Begins the peak of each process anew (clear_refs, proc(5)); returns what each has now, in MiB."""
    for pid in (service.pid, *children(service.pid)):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(service, "VmRSS")


def peak_growth_mib(service: RunningService, before: dict[int, float]) -> float:
    """Returns the growth to its peak of the process that grew most, in MiB.

    Args:
        service: The server.
        before: What `reset_peak` returned.
    """
    return max(peak - before.get(pid, peak) for pid, peak in _memory(service, "VmHWM").items())


def _memory(service: RunningService, key: str) -> dict[int, float]:
    found = {}
    for pid in (service.pid, *children(service.pid)):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found[pid] = next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
    return found
