"""One worker as its parent sees it: a process, the link to it, and what it has said; and when to start the next."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fitserve_service.run_record import RunRecord
from fitserve_service.worker_agreement import Exposition
from fitserve_service.worker_link import Link, Message, PostedLink


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A process that was started; used on the parent's main thread, but for `link`.

    Args:
        number: Its place among the workers; the one that follows it has the same.
        process: The process.
        link: The parent's end.
        record: What it runs at any moment, for when it crashes.
        began_s: Monotonic time of its start.
        is_waiting: It would take calls, once it can answer what the others can.
        is_listening: It takes calls.
        is_settled: It says so to whoever asks.
        has_spoken: It can write pages, and answers `ping`.
        unanswered_looks: Looks since it last answered; see `worker_watch`.
        refusal: Why it cannot start; empty where it has not said so.
        exposition: Its metrics, when they were last asked for.
        pages: Pages that it was asked for, by number.
    """

    number: int
    process: subprocess.Popen[bytes]
    link: Link
    record: RunRecord
    began_s: float
    is_waiting: bool = False
    is_listening: bool = False
    is_settled: bool = False
    has_spoken: bool = False
    unanswered_looks: int = 0
    refusal: str = ""
    exposition: Exposition = field(default_factory=dict)
    pages: dict[int, Future[Message]] = field(default_factory=dict)

    def tell(self, kind: str, **values: Any) -> None:
        """Sends it a message, without waiting; one that takes none any more is ended."""
        if not self.link.send(kind, **values):
            self.process.kill()


def start_worker(number: int, began_s: float, shared: Sequence[int] = ()) -> WorkerProcess:
    """Starts a process that waits for `begin`: a fresh interpreter, never a fork of what this process has.

    Args:
        number: Its place among the workers.
        began_s: Monotonic time.
        shared: Descriptors that it has too, under the same numbers.

    Raises:
        OSError: the machine has no room for another process.
    """
    own, other = socket.socketpair()
    record = RunRecord()
    descriptors = (other.fileno(), record.descriptor)
    with other:
        # -P: no module of the directory that the server was started in takes the place of its own.
        program = (sys.executable, "-P", "-m", "fitserve_service.worker")
        # Out of the terminal's group: Ctrl-C is for the parent, which tells the workers.
        try:
            process = subprocess.Popen(
                [*program, *map(str, (*descriptors, os.getpid()))],
                stdin=subprocess.DEVNULL,
                pass_fds=(*descriptors, *shared),
                process_group=0,
            )
        except OSError:
            own.close()
            record.close()
            raise
    return WorkerProcess(number, process, PostedLink(own), record, began_s)


def end_text(exit_code: int) -> str:
    """Says how a process ended, for people; `exit_code` is negative where a signal ended it."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = next((each.name for each in signal.Signals if each == -exit_code), f"signal {-exit_code}")
    return f"{name}: has the machine run out of memory?" if name == "SIGKILL" else name


@dataclass(slots=True)
class BackOff:
    """How long to wait before a worker is started again; doubles while they die young.

    Args:
        first_s: The shortest wait.
        most_s: The longest.
        calm_s: One that lived so long has the next start at once, after `first_s`.
    """

    first_s: float = 0.1
    most_s: float = 10.0
    calm_s: float = 30.0
    _next_s: float = 0.0

    def after(self, lived_s: float) -> float:
        """Gives the wait after one that lived so long, seconds."""
        if lived_s >= self.calm_s or not self._next_s:
            self._next_s = self.first_s
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, self.most_s)
        return wait_s
