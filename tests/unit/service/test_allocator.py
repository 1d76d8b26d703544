"""What the C allocator keeps of freed memory, and when a server gives it back."""

from __future__ import annotations

import subprocess
import sys

from virtual_loop import VirtualLoop

from fitserve_service.allocator import IdleReturn

BUFFERS = """
import resource, sys
from fitserve_service import allocator
if sys.argv[1] == "kept":
    allocator.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
def use():
    parts = [b"x" * (10 << 20) for _ in range(4)]
use()
before = faults()
for _ in range(20):
    use()
during = faults() - before
kept = resident_mib()
allocator.return_freed_memory()
print(during, kept - resident_mib())
"""

PAGES_OF_ALL = 20 * 4 * (10 << 20) // 4096


def buffers(mode: str) -> tuple[int, float]:
    """Allocates and frees 800 MiB in large pieces; gives the page faults, and how many MiB could be given back."""
    output = subprocess.run([sys.executable, "-c", BUFFERS, mode], capture_output=True, text=True, check=True).stdout
    faults, returned = output.split()
    return int(faults), float(returned)


def test_large_buffers_are_used_again_without_a_fault_a_page_and_given_back_when_asked_for() -> None:
    left_alone, _ = buffers("left alone")
    kept, returned = buffers("kept")

    assert left_alone > PAGES_OF_ALL / 2
    assert kept < PAGES_OF_ALL / 20
    assert returned > 30


def test_memory_goes_back_once_after_work_when_nothing_more_came_for_a_while() -> None:
    loop, count, given = VirtualLoop(), 0, []
    IdleReturn(loop, lambda: count, lambda: given.append(loop.now_s)).start()
    begin_s = loop.now_s
    loop.advance(60)
    assert given == []
    for _ in range(5):
        count += 1
        loop.advance(10)
    assert given == []
    loop.advance(10)
    assert len(given) == 1
    loop.advance(100)
    assert len(given) == 1
    count += 1
    loop.advance(20)
    assert [round(at_s - begin_s) for at_s in given] == [120, 240]
