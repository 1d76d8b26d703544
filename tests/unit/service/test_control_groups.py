"""How many cores the control groups leave a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fitserve_service.control_groups import available_cores

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"


def first(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("", {}, 16),
        ("0::/\n", {}, 16),
        ("0::/\n", {f"{V2}/cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {f"{V2}/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {f"{V2}/cpu.max": "9900000 100000\n"}, 16),
        ("0::/\n", {f"{V2}/cpu.max": "200000 0\n"}, 16),
        ("0::/\n", {f"{V2}/cpu.max": "nonsense\n"}, 16),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "800000 100000\n", f"{V2}/a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "max 100000\n", f"{V2}/a/cpu.max": "max 100000\n"}, 16),
        ("0::/of/the/host\n", {f"{V2}/cpu.max": "400000 100000\n"}, 4),
        ("4:cpu:/a\n", first(f"{V1}/a", 500_000), 5),
        ("4:cpu:/docker/id\n", first(V1, 100_000, 50_000), 2),
        ("4:cpu:/a\n", first(f"{V1}/a", -1), 16),
        ("4:cpu,cpuacct:/a/b\n", first(f"{V2}/cpu,cpuacct/a", 600_000) | first(f"{V2}/cpu,cpuacct/a/b", -1), 6),
        ("3:cpuset:/a\n", first(f"{V1}/a", 100_000), 16),
    ],
)
def test_cores_are_those_that_the_quotas_leave(tmp_path: Path, groups: str, files: dict[str, str], cores: int) -> None:
    assert available_cores(machine(tmp_path, groups, files)) == cores


def test_affinity_bounds_the_cores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    root = machine(tmp_path, "0::/\n", {f"{V2}/cpu.max": "400000 100000\n"})
    assert available_cores(root) == 1
