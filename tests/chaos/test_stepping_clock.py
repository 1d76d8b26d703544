"""The clock that chaos runs step is the wall clock of a process, and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_benchmarks.chaos_clock import SteppingClock

PROGRAM = """
import datetime, threading, time
def look():
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
look()
input()
look()
# What waits by the monotonic clock waits as long as it did before.
began = time.monotonic()
threading.Event().wait(0.05)
print(time.monotonic() - began < 5, flush=True)
"""


@pytest.mark.needs_program("cc")
@pytest.mark.parametrize("step_s", [3600.0, -86_400.0])
def test_a_step_moves_the_wall_clock_of_its_processes_alone(tmp_path: Path, step_s: float) -> None:
    clock = SteppingClock(tmp_path)
    environment = os.environ | clock.environment
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = [float(text) for text in process.stdout.readline().split()]
        clock.step(step_s)
        process.stdin.write("\n")
        process.stdin.flush()
        after = [float(text) for text in process.stdout.readline().split()]
        assert process.stdout.readline() == "True\n"
    moved = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert moved[0] == pytest.approx(step_s, abs=60)
    assert moved[1] == pytest.approx(step_s, abs=60)
    assert 0 <= moved[2] < 60
    assert clock.offset_s == step_s
