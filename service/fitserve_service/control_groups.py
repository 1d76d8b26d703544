"""Where the limits of this process's control groups stand, and how many processor cores they leave it.

Sources: cgroups(7); the kernel's cgroup-v2.rst, cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def group_folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """Yields the folders of the control groups that bound this process, its own and all above it.

    Args:
        controller: "memory" or "cpu".
        root: Where `proc` and `sys` are mounted.

    Yields:
        The version of the hierarchy, 1 or 2, and a folder, which need not be there.
    """
    try:
        lines = (root / "proc/self/cgroup").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*os.fsdecode(line).split(":", 2), "", "")[:3]
        if not controllers:
            version, mounts = 2, [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            version, mounts = 1, [root / "sys/fs/cgroup" / controller, root / "sys/fs/cgroup" / controllers]
        else:
            continue
        # A container sees its own group as the mount's root, whatever path the host has for it.
        groups = Path(path.lstrip("/"))
        for mount in mounts:
            for group in (groups, *groups.parents):
                yield version, mount / group


def group_text(path: Path) -> str:
    """Reads a file of the kernel's; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return ""


def available_cores(root: Path = Path("/")) -> int:
    """Returns how many threads can run at once: the cores that this process may use, or its groups' quotas, if less.

    A quota of 2.5 cores counts as 2: a third thread would have all of them wait for the next period. It is 1 at least.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for version, folder in group_folders("cpu", root):
        cores = min(cores, _quota(version, folder))
    return max(int(cores), 1)


def _quota(version: int, folder: Path) -> float:
    """Reads how many cores a group may use; one without a limit (`max`, or -1) may use infinitely many."""
    if version == 2:
        quota, period = (*group_text(folder / "cpu.max").split(), "", "")[:2]
    else:
        quota, period = group_text(folder / "cpu.cfs_quota_us"), group_text(folder / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return float("inf")
    return int(quota) / int(period)
