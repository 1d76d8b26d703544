"""Children that do not outlive their parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from fitserve_benchmarks.processes import child_process, run_child

SLEEPER = "import time; time.sleep(120)"

# Starts a child of its own, tells both process ids, and sleeps; with "deaf" both ignore SIGTERM.
PARENT = f"""
import os, signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
print(os.getpid(), child.pid, flush=True)
time.sleep(120)
"""


def pids_from(process: subprocess.Popen[bytes]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def is_at_its_end(pipe: IO[bytes]) -> bool:
    """Tells whether every process that could write to a pipe is gone, or goes within half a minute."""
    return bool(select.select([pipe], [], [], 30)[0]) and pipe.read() == b""


def is_alive(pid: int) -> bool:
    """Tells whether a process runs; a zombie that its own parent has not reaped is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("manners", [[], ["deaf"]])
def test_leaving_the_context_ends_the_child_and_its_children(manners: list[str]) -> None:
    command = [sys.executable, "-c", PARENT, *manners]
    with child_process(command, stdout=subprocess.PIPE, grace_s=0.2) as process:
        pids = pids_from(process)
        assert all(map(is_alive, pids))
    assert process.returncode == (-signal.SIGKILL if manners else -signal.SIGTERM)
    assert process.stdout is not None
    assert is_at_its_end(process.stdout)  # a pipe that both held: both are gone
    process.stdout.close()


def test_an_error_in_the_context_ends_the_child() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        child_process([sys.executable, "-c", SLEEPER], stdout=subprocess.DEVNULL) as process,
    ):
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_the_parent_ends_the_child(number: signal.Signals, exit_code: int) -> None:
    script = f"""
import subprocess, sys
from fitserve_benchmarks.processes import child_process, orderly_ending
try:
    with orderly_ending(), child_process([sys.executable, "-c", {SLEEPER!r}]) as process:
        print(process.pid, flush=True)
        process.wait()
except KeyboardInterrupt:
    sys.exit(130)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        (child,) = pids_from(parent)
        assert is_alive(child)
        parent.send_signal(number)
        assert parent.wait(30) == exit_code
    assert not is_alive(child)


def test_a_killed_parent_takes_its_child_along() -> None:
    script = """
import sys
from fitserve_benchmarks.processes import child_process
with child_process([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(120)"]) as process:
    print(process.pid, file=sys.stderr, flush=True)
    process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = int(parent.stderr.readline())
        assert parent.stdout.readline() == b"up\n"  # from the child itself: its leash is on
        assert is_alive(child)
        parent.kill()
        parent.wait(30)
        assert is_at_its_end(parent.stdout)  # a pipe that the child held: it is gone too


def test_a_child_reads_its_message_and_its_output_comes_back() -> None:
    script = "import os, sys; print(sys.stdin.read() + os.environ['X']); sys.exit(3)"
    found = run_child([sys.executable, "-c", script], environment={"X": "!"}, message=b"hello", stdout=subprocess.PIPE)
    assert found == (3, b"hello!\n")


def test_a_child_has_this_process_environment() -> None:
    os.environ["FITSERVE_TEST_VARIABLE"] = "1"
    try:
        script = "import os, sys; sys.exit(int(os.environ['FITSERVE_TEST_VARIABLE']))"
        assert run_child([sys.executable, "-c", script])[0] == 1
    finally:
        del os.environ["FITSERVE_TEST_VARIABLE"]
