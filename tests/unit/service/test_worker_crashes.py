"""Crashes of workers that no version is to blame for, while the server starts and later."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_service.run_record import RunRecord
from fitserve_service.settings import ServerSettings
from fitserve_service.worker_crashes import WorkerCrashes
from fitserve_service.worker_link import Link
from fitserve_service.worker_process import WorkerProcess, end_text

ABORTS = (sys.executable, "-c", "import os; os.abort()")


@pytest.mark.parametrize(("is_starting", "record_count"), [(True, 0), (False, 1)])
def test_while_the_server_starts_the_sentence_that_ends_it_is_all_that_is_said(
    caplog: pytest.LogCaptureFixture, is_starting: bool, record_count: int
) -> None:
    own, other = socket.socketpair()
    with own, other, subprocess.Popen(ABORTS) as process:
        process.wait()
        worker = WorkerProcess(0, process, Link(own), RunRecord(), 0.0)
        crashes = WorkerCrashes(ServerSettings(repository=Path()), [])
        assert crashes.note(worker, is_starting=is_starting) == frozenset()
        worker.record.close()
    assert len(caplog.records) == record_count


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (3, "exit code 3"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (-signal.SIGKILL, "SIGKILL: has the machine run out of memory?"),
        (-62, "signal 62"),
    ],
)
def test_how_a_process_ended_is_said_in_words(code: int, text: str) -> None:
    assert end_text(code) == text
