"""Errands of the workers: what a caller asked of one of them, and all carry out before the caller is answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fitserve_service.worker_process import WorkerProcess


@dataclass(slots=True, eq=False)
class _Errand:
    origin: WorkerProcess
    ask: int
    waiting: set[WorkerProcess]
    error: dict[str, Any] | None = None


class Errands:
    """Errands under way. Used on the parent's main thread.

    Args:
        after: Calls back once all workers answer by what they have reported.
    """

    def __init__(self, after: Callable[[Callable[[], object]], None]) -> None:
        self._after = after
        self._numbers = itertools.count()
        self._under_way: dict[int, _Errand] = {}

    def begin(self, origin: WorkerProcess, ask: int, action: str, model: str, workers: Iterable[WorkerProcess]) -> None:
        """Has workers carry out what a caller of one of them asked for.

        Args:
            origin: The worker that was asked.
            ask: Its number of the call.
            action: "load", "unload" or "show".
            model: Model name.
            workers: Who carries it out.
        """
        number = next(self._numbers)
        errand = self._under_way[number] = _Errand(origin, ask, set(workers))
        for worker in tuple(errand.waiting):
            worker.tell("carry_out", id=number, action=action, model=model)

    def carried_out(self, number: int, worker: WorkerProcess, error: dict[str, Any] | None) -> None:
        """Takes what became of it in one worker; the caller is told the first error, once the last has done it."""
        errand = self._under_way[number]
        errand.waiting.discard(worker)
        errand.error = errand.error or error
        if not errand.waiting:
            del self._under_way[number]
            self._after(lambda: errand.origin.tell("answered", id=errand.ask, error=errand.error))

    def leave(self, worker: WorkerProcess) -> None:
        """Waits no more for a worker that has ended: the one that follows it does what is asked from its start."""
        for number in list(self._under_way):
            self.carried_out(number, worker, None)
