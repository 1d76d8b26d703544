"""Limits that leave no room for a server are told in a sentence with the figure and the cure, and others are not."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from fitserve_service.start_errors import failure_sentence
from fitserve_service.start_room import shortage

PROGRAM = """
import resource
from fitserve_service import start_room
resource.setrlimit(resource.RLIMIT_AS, (%d, %d))
print(start_room.shortage(1024, 2))
"""


@pytest.mark.parametrize(("limit", "workers"), [(63, 0), (64, 1), (79, 2), (10, 4)])
def test_too_few_files_are_too_few_for_these_workers(limit: int, workers: int) -> None:
    least = 64 + 8 * workers
    assert f"at least {least} open files, got {limit}; raise it (ulimit -Hn {least}" in shortage(limit, workers)


@pytest.mark.parametrize("limit", [64 + 8 * 4, 1024, resource.RLIM_INFINITY])
def test_what_suffices_is_not_told(limit: int) -> None:
    for workers in (0, 1, 2, 4):
        assert shortage(limit, workers) == ""


def test_an_address_space_that_holds_no_server_is_told() -> None:
    # In a process of its own: a hard limit cannot be raised again.
    limit = 1000 << 20
    done = subprocess.run([sys.executable, "-c", PROGRAM % (limit, limit)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"expected an address space of at least {1 << 30} bytes, got {limit}; raise")


def test_threads_that_cannot_be_started_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The limit of a user's threads does not bind root, who may run this.
    import _thread
    import threading

    begun = []

    def start(*arguments: object) -> object:
        if len(begun) == 5:
            raise RuntimeError("can't start new thread")
        begun.append(arguments)
        return _thread.start_new_thread(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(threading, "_start_new_thread", start)
    assert "at least 52 threads, found it for 5; raise the limit" in shortage(1024, 2)


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (MemoryError(), "raise this one's limit"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (OSError(5, "Input/output error"), "report it"),
    ],
)
def test_what_has_run_out_is_named_with_its_cure(error: Exception, cure: str) -> None:
    assert cure in failure_sentence(error)
