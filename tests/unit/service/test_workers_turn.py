"""When a worker takes calls that was started again, and when the parent says that all is ready."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fitserve_service.run_record import RunRecord
from fitserve_service.settings import ServerSettings
from fitserve_service.worker_link import Link
from fitserve_service.worker_process import WorkerProcess
from fitserve_service.workers import Workers

OLD = [["m", 0], ["m", 1]]
NEW = [["m", 0], ["m", 1], ["m", 2]]


class Worker:
    """A worker as the parent has it, and what it is told."""

    def __init__(self, number: int, own: socket.socket, other: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.process = WorkerProcess(number, process, Link(own), RunRecord(), 0.0)
        self._other = other
        self._link = Link(other)

    def told(self) -> list[str]:
        """Gives the kinds of the messages that came since."""
        self.process.link.send("end")
        kinds = []
        while (message := self._link.receive()) is not None and message["kind"] != "end":
            kinds.append(message["kind"])
        return kinds


@contextmanager
def worker(workers: Workers, number: int) -> Iterator[Worker]:
    own, other = socket.socketpair()
    with own, other, subprocess.Popen([sys.executable, "-c", ""]) as process:
        made = Worker(number, own, other, process)
        workers._live.add(made.process)
        try:
            yield made
        finally:
            made.process.record.close()


@contextmanager
def two() -> Iterator[tuple[Workers, Worker, Worker]]:
    """One that serves, and one that has just been started."""
    workers = Workers(ServerSettings(repository=Path(), workers=2))
    with ExitStack() as stack:
        first, second = (stack.enter_context(worker(workers, number)) for number in range(2))
        workers._on_ready(first.process, {"names": OLD})
        workers._on_waiting(first.process, {})
        assert first.told() == ["go_on"]
        workers._on_listening(first.process, {"text": ""})
        first.told()
        yield workers, first, second


def test_one_that_answers_the_same_goes_on_at_once_and_counts_from_then_on() -> None:
    with two() as (workers, first, second):
        workers._on_ready(second.process, {"names": OLD})
        workers._on_waiting(second.process, {})
        assert second.told() == ["go_on"]
        # A version that the first has loaded meanwhile is not agreed on before the second has it.
        workers._on_ready(first.process, {"names": NEW})
        assert workers._agreed() == {("m", 0), ("m", 1)}


def test_one_that_is_a_version_behind_waits_until_it_has_it() -> None:
    with two() as (workers, first, second):
        workers._on_ready(second.process, {"names": OLD})
        workers._on_ready(first.process, {"names": NEW})
        workers._on_waiting(second.process, {})
        assert second.told() == []
        assert workers._agreed() == {("m", 0), ("m", 1), ("m", 2)}
        workers._on_ready(second.process, {"names": NEW})
        assert second.told() == ["go_on"]


def test_one_that_cannot_come_to_it_goes_on_after_a_while() -> None:
    with two() as (workers, first, second):
        workers._on_ready(second.process, {"names": OLD})
        workers._on_ready(first.process, {"names": NEW})
        workers._on_waiting(second.process, {})
        assert second.told() == []
        workers._timers[-1][2]()
        assert second.told() == ["go_on"]
        assert workers._agreed() == {("m", 0), ("m", 1)}


def test_all_is_ready_once_every_worker_says_so_itself() -> None:
    with two() as (parent, first, second):
        said: list[str] = []
        parent._say = said.append
        parent._on_ready(second.process, {"names": OLD})
        parent._on_waiting(second.process, {})
        parent._on_listening(second.process, {"text": "ready"})
        parent._on_settled(first.process, {})
        assert (said, parent.is_ready()) == ([], True)
        parent._on_settled(second.process, {})
        # A worker that is started again is settled anew, and is no news.
        parent._on_listening(second.process, {"text": "again"})
        parent._on_settled(second.process, {})
        assert said == ["ready"]
