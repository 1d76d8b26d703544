"""A limit on work that may take for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from fitserve_benchmarks.time_limit import TimeLimitError, time_limit

FOR_EVER = "import time\nwhile True: time.sleep(60)"


def test_work_within_its_limit_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(60.0):
        found = sum(range(10))
    assert found == 45
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_work_that_goes_on_is_ended_with_the_processes_it_started() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def work() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", FOR_EVER]))
        started[0].wait()

    with (
        pytest.raises(TimeLimitError, match=r"time limit: expected at most 0\.2 s, still at work then"),
        time_limit(0.2),
    ):
        work()
    assert started[0].wait(30) == -signal.SIGKILL


def test_a_library_that_swallows_every_exception_is_ended_all_the_same() -> None:
    def stubborn() -> None:
        while True:
            with suppress(Exception):
                threading.Event().wait(60)

    with pytest.raises(TimeLimitError), time_limit(0.1):
        stubborn()


def test_processes_from_before_are_not_touched() -> None:
    with subprocess.Popen([sys.executable, "-c", FOR_EVER]) as before:
        with pytest.raises(TimeLimitError), time_limit(0.1):
            threading.Event().wait(60)
        assert before.poll() is None
        assert Path(f"/proc/{before.pid}").is_dir()
        os.kill(before.pid, signal.SIGKILL)


def test_an_error_of_the_work_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError), time_limit(60.0):
        1 / 0  # noqa: B018


def test_in_another_thread_there_is_no_limit() -> None:
    found: list[int] = []

    def work() -> None:
        with time_limit(1e-3):
            found.append(sum(range(10)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [45]
