"""When a worker takes calls, when one that hangs is ended, and when the parent says that all is ready."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fitserve_service.pages_http import Request
from fitserve_service.run_record import RunRecord
from fitserve_service.settings import ServerSettings
from fitserve_service.switching.counter import open_counter
from fitserve_service.switching.views import Candidate
from fitserve_service.worker_link import Link
from fitserve_service.worker_process import WorkerProcess
from fitserve_service.worker_shared import WorkerShared
from fitserve_service.worker_watch import HUNG_LOOKS
from fitserve_service.workers import Workers

ASLEEP = (sys.executable, "-c", "import sys; sys.stdin.read()")


def has(*versions: int, held: tuple[int, ...] = ()) -> Candidate:
    return Candidate(dict.fromkeys(versions, "a"), dict.fromkeys(held, "a"), {}, sorted({*versions, *held}))


class Worker:
    """A worker as the parent has it, and what it is told."""

    def __init__(self, number: int, parent: Workers, own: socket.socket, other: socket.socket) -> None:
        self.parent = parent
        process = subprocess.Popen(ASLEEP, stdin=subprocess.PIPE)
        self.process = WorkerProcess(number, process, Link(own), RunRecord(), 0.0)
        self._link = Link(other)

    def told(self) -> list[str]:
        """Gives the kinds of the messages that came since; holds what is proposed."""
        return [message["kind"] for message in self.messages()]

    def messages(self) -> list[dict[str, Any]]:
        self.process.link.send("end")
        found: list[dict[str, Any]] = []
        while (message := self._link.receive()) is not None and message["kind"] != "end":
            found.append(message)
        return found

    def hold(self) -> None:
        """Says that it holds what it was told to."""
        for message in self.messages():
            if message["kind"] == "propose":
                self.parent._on_prepared(self.process, {"number": message["number"], "is_prepared": True})

    def report(self, candidate: Candidate) -> None:
        self.parent._on_has(self.process, {"model": "m", "candidate": candidate.fields()})


@contextmanager
def worker(parent: Workers, number: int) -> Iterator[Worker]:
    own, other = socket.socketpair()
    with own, other:
        made = Worker(number, parent, own, other)
        parent._live.add(made.process)
        try:
            yield made
        finally:
            with suppress(OSError):
                # The parent has closed that of one that ended.
                made.process.record.close()
            made.process.process.kill()
            made.process.process.communicate()


@contextmanager
def two() -> Iterator[tuple[Workers, Worker, Worker]]:
    """Two that have been started."""
    parent = Workers(ServerSettings(repository=Path(), workers=2))
    parent._shared = WorkerShared(2)
    with ExitStack() as stack:
        stack.callback(parent._shared.close)
        first, second = (stack.enter_context(worker(parent, number)) for number in range(2))
        yield parent, first, second


@contextmanager
def serving() -> Iterator[tuple[Workers, Worker, Worker]]:
    """Two that answer with version 1."""
    with two() as (parent, first, second):
        for each in (first, second):
            each.report(has(1))
            parent._on_waiting(each.process, {})
        for each in (first, second):
            each.hold()
        for each in (first, second):
            assert each.told() == ["go_on"]
            parent._on_listening(each.process, {"text": ""})
        parent._has_said = True
        first.messages()
        second.messages()
        yield parent, first, second


def number(parent: Workers) -> int:
    """Reads the switch as a worker does."""
    assert parent._shared is not None
    counter: int = parent._shared.fields()["counter"]
    with open_counter(counter) as memory:
        found: int = memory[0]
        return found


def test_the_first_workers_take_calls_together() -> None:
    with two() as (parent, first, second):
        first.report(has(1))
        parent._on_waiting(first.process, {})
        assert first.told() == []
        second.report(has(1))
        parent._on_waiting(second.process, {})
        first.hold()
        assert first.told() == []
        second.hold()
        assert (first.told(), second.told()) == (["go_on"], ["go_on"])


def test_first_workers_that_have_nothing_in_common_load_what_the_others_have() -> None:
    with two() as (parent, first, second):
        first.report(has(2))
        second.report(has(1))
        parent._on_waiting(first.process, {})
        parent._on_waiting(second.process, {})
        (message,) = first.messages()
        assert (message["kind"], message["versions"]) == ("load_also", {"m": [1, 2]})
        first.report(has(1, 2))
        assert first.told() == ["propose"]


def test_first_workers_that_come_to_nothing_in_common_go_on_after_a_while() -> None:
    with two() as (parent, first, second):
        first.report(has(2))
        second.report(has(1))
        parent._on_waiting(first.process, {})
        parent._on_waiting(second.process, {})
        assert "propose" not in first.told()
        parent._timers[-1][2]()
        assert first.told() == ["propose"]


def test_a_version_answers_in_all_once_all_hold_it() -> None:
    with serving() as (parent, first, second):
        before = number(parent)
        first.report(has(2, held=(1,)))
        assert first.told() == []
        second.report(has(2, held=(1,)))
        first.hold()
        assert number(parent) == before
        second.hold()
        assert number(parent) == before + 1
        assert (first.told(), second.told()) == (["switched"], ["switched"])


def test_one_that_follows_another_takes_calls_once_it_has_what_the_others_answer() -> None:
    with serving() as (parent, _first, second):
        parent._switches.leave(second.process)
        second.process.is_listening = False
        second.report(has(2))
        parent._on_waiting(second.process, {})
        (message,) = second.messages()
        assert (message["kind"], message["versions"]) == ("load_also", {"m": [1]})
        second.report(has(1, 2))
        second.hold()
        assert second.told() == ["go_on"]


def test_one_that_hangs_is_ended_and_pages_do_without_it_before() -> None:
    with serving() as (parent, first, second):
        pages = parent._ask_pages(Request("/metrics"), is_for_all=True)
        assert len(pages) == 2
        for _ in range(HUNG_LOOKS):
            parent._look()
            parent._on_pong(first.process, {})
        assert sum(page.cancelled() for page in pages) == 1
        assert len(parent._ask_pages(Request("/metrics"), is_for_all=True)) == 1
        assert second.process.process.poll() is None
        parent._look()
        assert second.process.process.wait() == -9
        assert first.process.process.poll() is None
        assert second.told().count("ping") == 1


def test_one_that_hangs_while_the_server_starts_is_why_it_does_not_start() -> None:
    with two() as (parent, first, _):
        first.process.has_spoken = True
        for _ in range(HUNG_LOOKS + 1):
            parent._look()
        first.process.process.wait()
        parent._ended(first.process)
        assert parent._refusal == "worker 0 has not answered for 5 s: its loop is blocked; it runs no version"


def test_a_lasting_disagreement_is_named_and_nobody_is_ready() -> None:
    with serving() as (parent, first, second):
        first.process.is_settled = second.process.is_settled = True
        parent._switches._disagreements.patience_s = 0.0
        assert parent.is_ready()
        first.report(has(2, held=(1,)))
        parent._look()
        assert not parent.is_ready()
        assert parent.disagreement() == "model 'm' version 2: other workers have loaded it, worker 1 has not"
        assert [m["is_agreed"] for m in first.messages() if m["kind"] == "settle"] == [False]
        second.report(has(2, held=(1,)))
        parent._look()
        assert parent.is_ready()
        assert [m["is_agreed"] for m in first.messages() if m["kind"] == "settle"] == [True]


def test_all_is_ready_once_every_worker_says_so_itself() -> None:
    with serving() as (parent, first, second):
        parent._has_said = False
        said: list[str] = []
        parent._say = said.append
        parent._text = "ready"
        parent._on_settled(first.process, {})
        assert (said, parent.is_ready()) == ([], True)
        parent._on_settled(second.process, {})
        # A worker that is started again is settled anew, and is no news.
        parent._on_listening(second.process, {"text": "again"})
        parent._on_settled(second.process, {})
        assert said == ["ready"]


def test_a_worker_that_ends_before_all_was_ready_ends_the_server_with_a_sentence() -> None:
    with two() as (parent, first, second):
        parent._on_refused(first.process, {"text": "--device: none"})
        parent._ended(first.process)
        assert (parent._refusal, parent._is_stopping) == ("--device: none", True)
        assert second.process.process.wait() == -9


def test_one_that_ends_later_is_followed_by_another() -> None:
    with serving() as (parent, first, _second):
        first.process.process.kill()
        first.process.process.wait()
        timers = len(parent._timers)
        parent._ended(first.process)
        assert (parent._refusal, parent._is_stopping, len(parent._timers)) == ("", False, timers + 1)
