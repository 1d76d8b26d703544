"""Which workers take calls, and what all of them answer: the rounds of `switching`, tied to the workers' processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from fitserve_service.run_record import VersionName
from fitserve_service.switching.disagreements import Disagreements
from fitserve_service.switching.rounds import Rounds
from fitserve_service.switching.views import Candidate
from fitserve_service.worker_link import Message
from fitserve_service.worker_process import WorkerProcess

_PATIENCE_S: Final = 5.0
"""A disagreement that lasts longer, and longer than two looks at the repository, is named."""

_log = logging.getLogger(__name__)


class WorkerSwitches:
    """Has all workers answer alike. Used on the parent's main thread, but for `lasting`.

    Args:
        live: The workers that live; the parent's own set.
        worker_count: How many there are to be.
        poll_interval_s: How often a worker looks at the repository.
        commit: Makes a switch; see `switching.counter`.
    """

    def __init__(
        self,
        live: Collection[WorkerProcess],
        worker_count: int,
        poll_interval_s: float,
        commit: Callable[[int], object],
    ) -> None:
        self._live = live
        self._worker_count = worker_count
        self._rounds = Rounds[WorkerProcess](_propose, commit, self._switched)
        self._disagreements = Disagreements(max(_PATIENCE_S, 2 * poll_interval_s))
        self.after = self._rounds.after
        self.bar: Callable[[Iterable[VersionName]], None] = self._rounds.bar

    def lasting(self) -> dict[str, str]:
        """Returns, to any thread, what the workers lastingly differ in, by model."""
        return self._disagreements.lasting.copy()

    def report(self, worker: WorkerProcess, message: Message) -> None:
        """Takes what a worker has of a model."""
        self._rounds.report(worker, message["model"], Candidate.of(message["candidate"]))
        if worker.is_waiting:
            self.admit()

    def accept(self, worker: WorkerProcess, message: Message) -> None:
        """Takes a worker's answer to a proposal."""
        self._rounds.accept(worker, message["number"], is_prepared=message["is_prepared"])

    def leave(self, worker: WorkerProcess) -> None:
        """Goes on without a worker that has ended."""
        self._rounds.leave(worker)

    def admit(self, *, is_due: bool = False) -> None:
        """Lets workers take calls that wait to, once they have what the others answer with.

        The first ones begin together, so that they answer with what all of them have.

        Args:
            is_due: They begin with whatever they have.
        """
        waiting = [worker for worker in self._live if worker.is_waiting]
        members = self._rounds.members
        if members or is_due:
            self._rounds.join(waiting)
            for worker in waiting:
                self._catch_up(worker)
        elif len(waiting) == self._worker_count:
            if not (apart := self._rounds.apart(waiting)):
                return self._rounds.join(waiting)
            for worker in waiting:
                worker.tell("load_also", versions=apart)
        return None

    def look(self) -> bool:
        """Names what the workers lastingly differ in, and what they do not any more; now and then.

        Returns:
            Whether that has changed.
        """
        self._rounds.go_on()
        found = self._rounds.disagreements(lambda worker: worker.number)
        begun, over = self._disagreements.update(found, time.monotonic())
        for text in begun:
            _log.error("the workers disagree: %s; the server is not ready until they agree", text)
        for model in over:
            _log.info("the workers agree on model '%s' again", model)
        return bool(begun or over)

    def _switched(self, joined: set[WorkerProcess]) -> None:
        for worker in self._live:
            if worker in joined:
                worker.is_waiting = False
                worker.tell("go_on")
            elif worker in self._rounds.members:
                worker.tell("switched")
            elif worker.is_waiting:
                self._catch_up(worker)

    def _catch_up(self, worker: WorkerProcess) -> None:
        if self._rounds.members and worker not in self._rounds.members:
            worker.tell("load_also", versions=self._rounds.missing(worker))


def _propose(worker: WorkerProcess, number: int, views: dict[str, Any]) -> None:
    worker.tell("propose", number=number, views=views)
