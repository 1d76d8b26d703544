"""Which workers hang: those whose loop does not answer their parent. What runs or loads off the loop does not count.

The time is counted in looks, not by a clock: a parent that was stopped itself, or a machine that slept, blames nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fitserve_service.worker_process import WorkerProcess

LOOK_S: Final = 0.25
"""How often to look."""

HUNG_LOOKS: Final = 20
"""A worker that has not answered for so many looks hangs: 5 s."""

_LATE_LOOKS: Final = 2
"""One that has not answered for so many is not waited for."""

_START_LOOKS: Final = 240
"""One that has not said a word for so many does not come: 60 s."""


def is_late(worker: WorkerProcess) -> bool:
    """Tells whether a worker takes its time to answer: pages do without it."""
    return worker.unanswered_looks > _LATE_LOOKS


def find_hung(workers: Iterable[WorkerProcess]) -> list[WorkerProcess]:
    """Asks each worker for a sign of life, and returns those that have given none for too long; every `LOOK_S`."""
    hung = []
    for worker in workers:
        if worker.unanswered_looks >= (HUNG_LOOKS if worker.has_spoken else _START_LOOKS):
            hung.append(worker)
            continue
        if worker.unanswered_looks == 0 and worker.has_spoken:
            worker.tell("ping")
        worker.unanswered_looks += 1
        if is_late(worker):
            for page in worker.pages.values():
                page.cancel()
    return hung


def how_it_hangs(worker: WorkerProcess) -> str:
    """Says what a worker does that hangs, for the log."""
    running = ", ".join(f"{model} version {version}" for model, version in sorted(worker.record.running()))
    try:
        is_stopped = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        is_stopped = False
    state = "the process is stopped (SIGSTOP, or a debugger)" if is_stopped else "its loop is blocked"
    return f"{state}; it runs {running or 'no version'}"
