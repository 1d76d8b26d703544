"""What a process takes is told as the kernel counts it."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fitserve_service.memory_metrics import MemoryCollector
from fitserve_service.process_memory import Memory, free_bytes, read_memory

SIZE = 32 << 20
# What the rest of this process (pages of libraries that other processes begin or cease to share, freed memory) may
# gain or lose meanwhile.
OTHER = SIZE // 4
READER = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
    print(pages.find(b"y"), flush=True)
    sys.stdin.read()
"""


def test_pages_that_several_processes_have_are_not_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SIZE)
    before = read_memory()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert pages.find(b"y") == -1
        alone = read_memory()
        with subprocess.Popen([sys.executable, "-c", READER, str(path)], stdin=PIPE, stdout=PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            shared = read_memory()
            found = read_memory(other.pid)
            other.communicate()
    assert before is not None
    assert alone is not None
    assert shared is not None
    assert found is not None
    assert alone.resident_bytes - before.resident_bytes >= SIZE - OTHER
    assert alone.private_bytes - before.private_bytes >= SIZE - OTHER
    assert shared.resident_bytes >= alone.resident_bytes - OTHER
    assert shared.private_bytes - before.private_bytes < OTHER
    assert found.resident_bytes - found.private_bytes >= SIZE


GIB = 1 << 30


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Lays out what the kernel shows of a machine with 8 GiB free."""
    files = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:  {8 << 20} kB\n", "proc/self/cgroup": groups, **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(mount: str, most: str, used: int, idle: int = 0) -> dict[str, str]:
    """The files of a control group, of version 1 where the mount is that of the memory controller."""
    is_first = mount.startswith("sys/fs/cgroup/memory")
    names = (
        ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if is_first else ("max", "current", "inactive_file")
    )
    return {
        f"{mount}/memory.{names[0]}": f"{most}\n",
        f"{mount}/memory.{names[1]}": f"{used}\n",
        f"{mount}/memory.stat": f"anon 5\n{names[2]} {idle}\nfile 7\n",
    }


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("groups", "files", "free_gib"),
    [
        ("", {}, 8),
        ("0::/\n", {}, 8),
        ("0::/\n", group(V2, str(3 * GIB), GIB), 2),
        ("0::/\n", group(V2, str(3 * GIB), 2 * GIB, idle=GIB), 2),
        ("0::/\n", group(V2, "max", GIB), 8),
        ("0::/\n", group(V2, str(99 * GIB), GIB), 8),
        ("0::/\n", group(V2, str(GIB), 2 * GIB), 0),
        ("0::/a/b\n", group(f"{V2}/a/b", "max", 0) | group(f"{V2}/a", str(5 * GIB), GIB), 4),
        ("0::/of/the/host\n", group(V2, str(5 * GIB), GIB), 4),
        ("4:cpu,memory:/a\n1:name=x:/b\n0::/\n", group(f"{V1}/a", str(6 * GIB), 2 * GIB, idle=GIB), 5),
        ("4:memory:/docker/id\n", group(V1, str(6 * GIB), GIB), 5),
        ("4:memory:/a\n", group(f"{V1}/a", str(2**63 - 4096), GIB), 8),
        ("3:cpuset:/a\n", group(f"{V1}/a", str(GIB), 0), 8),
    ],
)
def test_free_memory_is_what_the_machine_and_its_control_groups_leave(
    tmp_path: Path, groups: str, files: dict[str, str], free_gib: int
) -> None:
    assert free_bytes(machine(tmp_path, groups, files)) == free_gib * GIB


def test_this_machine_has_memory_left() -> None:
    assert free_bytes() > 0


def test_a_process_that_is_not_there_has_no_memory() -> None:
    assert read_memory(0) is None


def test_metrics_name_the_worker_and_say_nothing_where_nothing_is_known() -> None:
    registry = CollectorRegistry()
    registry.register(MemoryCollector(3, lambda: Memory(300, 200, 100)))
    lines = generate_latest(registry).decode().splitlines()
    assert 'fitserve_worker_memory_bytes{kind="resident",worker="3"} 300.0' in lines
    assert 'fitserve_worker_memory_bytes{kind="proportional",worker="3"} 200.0' in lines
    assert 'fitserve_worker_memory_bytes{kind="private",worker="3"} 100.0' in lines
    unknown = CollectorRegistry()
    unknown.register(MemoryCollector(0, lambda: None))
    assert "worker=" not in generate_latest(unknown).decode()
