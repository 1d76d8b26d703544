"""How much memory and processor time a process takes, and how much memory it may still take."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fitserve_service.control_groups import group_folders, group_text

_LINE: Final = re.compile(r"(\w+):\s+(\d+) kB")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process, bytes.

    Args:
        resident_bytes: Pages that it has, those that it shares with others counted whole.
        proportional_bytes: The same, each page shared out among those that have it: over all processes it adds up.
        private_bytes: Pages that nobody else has: what would be free without this process.
    """

    resident_bytes: int
    proportional_bytes: int
    private_bytes: int


def read_memory(process: int | str = "self") -> Memory | None:
    """Reads the memory of a process of this user; None where the kernel does not tell. Source: proc(5), smaps_rollup.

    Args:
        process: Process id.
    """
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = _sizes(text)
    return Memory(sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


def spent_s(process: int) -> float:
    """Reads how much processor time a process has spent, all threads, seconds; 0 where the kernel does not tell.

    Source: proc(5), stat. The command's name, in parentheses, may hold anything.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def free_bytes(root: Path = Path("/")) -> int:
    """Reads how much memory this process may still take: what the machine has left, or its control groups, if less.

    Pages of files that nobody uses count as free. Sources: proc(5), meminfo; the kernel's cgroup-v2.rst and
    cgroup-v1/memory.rst.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    try:
        free = _sizes((root / "proc/meminfo").read_text())["MemAvailable"]
    except (OSError, KeyError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(int(min([free, *_group_rooms(root)])), 0)


def _group_rooms(root: Path) -> Iterator[float]:
    """Yields what each control group of this process leaves; one without a limit leaves infinity."""
    for version, folder in group_folders("memory", root):
        if version == 2:
            yield _room(folder, ("memory.max", "memory.high"), "memory.current", "inactive_file")
        else:
            yield _room(folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def _room(folder: Path, limits: tuple[str, ...], usage: str, idle: str) -> float:
    bounds = [int(text) for name in limits if (text := group_text(folder / name)).isdecimal()]
    used = group_text(folder / usage)
    if not bounds or not used.isdecimal():
        return math.inf
    unused = re.search(rf"^{idle} (\d+)$", group_text(folder / "memory.stat"), re.MULTILINE)
    return min(bounds) - int(used) + (int(unused[1]) if unused else 0)


def _sizes(text: str) -> dict[str, int]:
    return {name: int(kib) << 10 for name, kib in _LINE.findall(text)}
