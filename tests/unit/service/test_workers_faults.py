"""What the parent of the workers does where the machine, or a worker, does what it should not."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fitserve_service import worker_process, workers
from fitserve_service.pages_http import Request
from fitserve_service.run_record import RunRecord
from fitserve_service.settings import ServerSettings
from fitserve_service.worker_link import Link
from fitserve_service.worker_process import WorkerProcess
from fitserve_service.workers import Workers

ASLEEP = (sys.executable, "-c", "import sys; sys.stdin.read()")


def two() -> Workers:
    return Workers(ServerSettings(repository=Path(), workers=2))


def test_a_machine_without_room_for_a_process_is_tried_again_and_costs_nobody_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(worker_process.subprocess, "Popen", refuse)
    parent = two()
    parent._has_said = True
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        parent._start(1)
    assert "worker 1 could not be started (Resource temporarily unavailable); trying again in 0.1 s" in caplog.text
    assert "trying again in 0.4 s" in caplog.text
    assert len(parent._timers) == 3
    assert len(os.listdir("/proc/self/fd")) <= open_before


@pytest.mark.parametrize("sent", [b"\0\0\0\5nonse", b'\0\0\0\x11{"kind": "no_one"}', b"\0\0\0\2{}"])
def test_a_worker_that_says_what_nobody_understands_is_ended(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    parent = two()
    parent._has_said = True
    own, other = socket.socketpair()
    with own, other, subprocess.Popen(ASLEEP, stdin=subprocess.PIPE) as process:
        spoilt = WorkerProcess(0, process, Link(own), RunRecord(), 0.0)
        other.sendall(sent)
        other.shutdown(socket.SHUT_WR)
        parent._live.add(spoilt)
        parent._listen(spoilt)
        assert process.returncode == -9
        parent._turn()
    assert parent._live == set()
    assert "worker 0 says what nobody understands" in caplog.text
    assert len(parent._timers) == 1


def test_a_worker_that_does_not_answer_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MOST_PAGES", 3)
    parent = two()
    own, other = socket.socketpair()
    with own, other, subprocess.Popen(ASLEEP, stdin=subprocess.PIPE) as process:
        silent = WorkerProcess(0, process, Link(own), RunRecord(), 0.0, is_listening=True)
        parent._live.add(silent)
        asked = [len(parent._ask_pages(Request("/metrics"), is_for_all=True)) for _ in range(6)]
        silent.record.close()
    assert asked == [1, 1, 1, 0, 0, 0]
    assert len(silent.pages) == 3
