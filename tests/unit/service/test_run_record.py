"""What a process ran when it died is read by whoever made its record; each case is a process that dies."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fitserve_service import run_record
from fitserve_service.run_record import RunRecord

HEAD = """
import os, signal, sys, threading
from fitserve_service import run_record
run_record.keep_in(int(sys.argv[1]))
def crash():
    os.kill(os.getpid(), signal.SIGSEGV)
    threading.Event().wait()
def beside(model, version):
    ready, hold = threading.Event(), threading.Event()
    def run():
        run_record.begin(model, version)
        ready.set()
        hold.wait()
    threading.Thread(target=run, daemon=True).start()
    ready.wait()
"""


def died(program: str) -> tuple[int, RunRecord]:
    """Runs a program with a record until it dies; gives its exit code and the record, which the caller closes."""
    record = RunRecord()
    command = [sys.executable, "-c", HEAD + program, str(record.descriptor)]
    done = subprocess.run(command, pass_fds=[record.descriptor], check=False, timeout=60)
    return done.returncode, record


@pytest.mark.parametrize(
    ("program", "running"),
    [
        ("run_record.begin('m', 3); crash()", {("m", 3)}),
        ("run_record.begin('m', 3); run_record.end(); crash()", set()),
        ("run_record.begin('a', 1); run_record.begin('b', 2); crash()", {("b", 2)}),
        # The thread that crashed is known: what ran beside it is not to blame.
        ("beside('other', 9); run_record.begin('m', 3); crash()", {("m", 3)}),
        ("beside('other', 9); crash()", set()),
    ],
)
def test_it_says_what_the_thread_that_crashed_ran(program: str, running: set[tuple[str, int]]) -> None:
    exit_code, record = died(program)
    assert exit_code == -signal.SIGSEGV
    assert record.running() == running
    assert "Segmentation fault" in record.trace()
    record.close()


def test_where_the_thread_is_not_known_everything_that_ran_is_named() -> None:
    program = "beside('other', 9); run_record.begin('m', 3); os.kill(os.getpid(), signal.SIGSYS); crash()"
    exit_code, record = died(program)
    assert exit_code == -signal.SIGSYS
    assert record.running() == {("m", 3), ("other", 9)}
    assert record.trace() == ""
    assert record.fault() is None
    record.close()


def test_a_trace_that_was_cut_short_clears_the_threads_that_it_came_to() -> None:
    program = """
import faulthandler
faulthandler.disable()
beside('other', 9)
run_record.begin('m', 3)
other = next(thread.ident for thread in threading.enumerate() if thread is not threading.main_thread())
text = f'Fatal Python error: Floating point exception\\n\\nThread 0x{other:016x} (most recent call first):\\n  File "x'
os.write(int(sys.argv[1]), (text + 'Fatal Python error: Segmentation fault\\n\\n').encode())
crash()
"""
    exit_code, record = died(program)
    assert exit_code == -signal.SIGSEGV
    assert record.running() == {("m", 3)}
    assert record.fault() is signal.SIGFPE
    record.close()


def test_where_no_thread_of_pythons_crashed_everything_that_ran_is_named() -> None:
    program = """
import ctypes
libc = ctypes.CDLL(None)
beside('other', 9)
libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(1, ctypes.c_void_p), None)
threading.Event().wait()
"""
    exit_code, record = died(program)
    assert exit_code == -signal.SIGSEGV
    assert record.running() == {("other", 9)}
    assert record.fault() is signal.SIGSEGV
    record.close()


@pytest.mark.parametrize("name", ["SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSEGV"])
def test_the_fault_is_the_signal_that_it_crashed_by(name: str) -> None:
    exit_code, record = died(f"os.kill(os.getpid(), signal.{name})")
    assert exit_code == -signal.Signals[name]
    assert record.fault() is signal.Signals[name]
    record.close()


def test_a_record_that_was_scribbled_over_names_nobody() -> None:
    program = "os.pwrite(int(sys.argv[1]), bytes(range(1, 256)) * 300, 0)"
    exit_code, record = died(program)
    assert exit_code == 0
    assert record.running() == frozenset()
    record.close()


def test_the_longest_names_fit_and_more_threads_than_slots_do_no_harm() -> None:
    program = """
name = 'n' * 128
for number in range(run_record._SLOT_COUNT + 3):
    thread = threading.Thread(target=lambda: run_record.begin(name, 10**18 - 1))
    thread.start()
    thread.join()
thread = threading.Thread(target=lambda: run_record.begin('unrecorded', 1))
thread.start()
thread.join()
run_record.begin('late', 1)
"""
    exit_code, record = died(program)
    assert exit_code == 0
    assert record.running() == {("n" * 128, 10**18 - 1), ("late", 1)}
    record.close()


def test_a_block_that_fails_has_ended() -> None:
    program = """
try:
    with run_record.running('m', 1):
        raise ValueError
except ValueError:
    crash()
"""
    _, record = died(program)
    assert record.running() == frozenset()
    record.close()


def test_a_process_without_a_record_writes_nothing_down() -> None:
    with run_record.running("m", 1):
        assert run_record._slots is None
