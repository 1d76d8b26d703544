"""What a process takes is told as the kernel counts it."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

from prometheus_client import CollectorRegistry, generate_latest

from fitserve_service.memory_metrics import MemoryCollector
from fitserve_service.process_memory import Memory, read_memory

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
