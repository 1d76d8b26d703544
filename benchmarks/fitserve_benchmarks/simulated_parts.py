"""What surrounds the service's state machines when they are simulated: a loop, executors, a repository and models.

Nothing here waits, starts a thread or looks at a clock: time is a number, and what happens next is whoever holds the
parts to decide. Models answer with who asked and who answers, so that an answer that went astray shows.
Shapes: B is the batch axis.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar, cast

import numpy as np

from fitserve_contract.manifest import TensorSpec
from fitserve_contract.repository import VersionPath, version_path
from fitserve_service.costs import CostTable
from fitserve_service.loader import Loader
from fitserve_service.loading.load_errors import LoadError
from fitserve_service.loading.version_files import Marks, SeenFiles, Stamp
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import OperatorError, RunSwitch, Session
from fitserve_service.signature import Signature, Tensor
from fitserve_service.source import ModelSource, RepositorySource

Result = TypeVar("Result")

INPUT: Final = TensorSpec("x", "INT64", ("B", 3))
"""Row: number of the job, number of the row in it, 1 where the model is to refuse the row."""

OUTPUTS: Final = (TensorSpec("who", "INT64", ("B", 2)), TensorSpec("by", "INT64", ("B", 2)))
"""`who` is the job and its row, `by` the model's number and the version."""


ROW_S: Final = 2.0**-9
"""What a row should take: sums of it are exact, so that they are the same in whatever order they are made."""


class VirtualLoop:
    """The loop of a transport whose turns and whose time somebody else makes."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def post(self, callback: Callable[[], None]) -> None:
        """Queues a callback."""
        self._soon.append(callback)

    call_soon = post

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Sets a timer."""
        heapq.heappush(self._timers, (self.now_s + delay_s, next(self._numbers), callback))

    def has_work(self) -> bool:
        """Tells whether a callback or a timer is to come."""
        return bool(self._soon or self._timers)

    def turn(self) -> bool:
        """Runs the oldest callback; False where there is none."""
        if not self._soon:
            return False
        self._soon.popleft()()
        return True

    def advance(self, step_s: float) -> None:
        """Lets time pass; timers go off at their time."""
        end_s = self.now_s + step_s
        while self._timers and self._timers[0][0] <= end_s:
            self.now_s, _, callback = heapq.heappop(self._timers)
            callback()
        self.now_s = end_s

    def fire(self, *, early_s: float = 0.0) -> bool:
        """Lets the next timer go off, or a moment too early as coarse clocks do; False where there is none."""
        if not self._timers:
            return False
        due_s, _, callback = heapq.heappop(self._timers)
        self.now_s = max(self.now_s, due_s - early_s)
        callback()
        return True


class VirtualExecutor(Executor):
    """An executor whose tasks end when and in the order somebody else says.

    Args:
        random: Decides which tasks do their work when they are handed in, and which when they end.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._tasks: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.is_ending = False
        """A task does its work later than it was handed in."""

    def submit(self, fn: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """Takes a task."""
        future: Future[Result] = Future()
        work: Callable[[], Any] = lambda: fn(*arguments, **named)  # noqa: E731
        if self._random.random() < 0.5:
            work = _already_done(work)
        self._tasks.append((future, work))
        return future

    def has_work(self) -> bool:
        """Tells whether a task is under way."""
        return bool(self._tasks)

    def end_one(self) -> bool:
        """Ends a task, any of them; False where there is none."""
        if not self._tasks:
            return False
        future, work = self._tasks.pop(self._random.randrange(len(self._tasks)))
        if future.set_running_or_notify_cancel():
            self.is_ending = True
            try:
                value = work()
            except Exception as error:
                self.is_ending = False
                future.set_exception(error)
            else:
                self.is_ending = False
                future.set_result(value)
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Cancels what has not begun, which is any task here."""
        if cancel_futures:
            for future, _ in list(self._tasks):
                if self._random.random() < 0.5:
                    future.cancel()


def _already_done(work: Callable[[], Any]) -> Callable[[], Any]:
    outcome: Future[Any] = Future()
    try:
        outcome.set_result(work())
    except Exception as error:
        outcome.set_exception(error)
    return outcome.result


class CoinCosts(CostTable):
    """Calls a run short or long by chance, so that both ways through the engine are taken, and replayed."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random

    def expected_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
        """Gives nothing or infinity."""
        return self._random.choice((0.0, float("inf")))

    def floor_s(self, rows: int, row_elements: int) -> float:
        """Gives nothing or infinity."""
        return self.expected_s(rows, row_elements)

    def row_s(self, row_elements: int) -> float:  # noqa: ARG002
        """Gives the same for every row."""
        return ROW_S

    def record(self, rows: int, row_elements: int, run_s: float) -> None:
        """Keeps nothing: what was measured must not decide what happens."""


@dataclass(slots=True)
class SimulatedSession:
    """A model that answers each row with who asked and who answers; `on_run` is told of the jobs and rows of a run."""

    model: int
    version: int
    on_run: Callable[[Sequence[int], int], None]
    inputs: tuple[TensorSpec, ...] = (INPUT,)
    outputs: tuple[TensorSpec, ...] = OUTPUTS
    provider: str = "simulated"
    has_loops: bool = False

    def run(
        self,
        inputs: Mapping[str, Tensor],
        output_names: Sequence[str],
        switch: RunSwitch | None = None,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Runs a batch. OperatorError: one of its rows is to be refused."""
        rows = inputs["x"].array
        self.on_run(list(dict.fromkeys(rows[:, 0].tolist())), len(rows))
        if rows[:, 2].any():
            raise OperatorError("operator Simulated: expected 0 in the third column, got 1")
        by = np.broadcast_to(np.array([[self.model, self.version]]), (len(rows), 2))
        found = {"who": Tensor("INT64", rows[:, :2]), "by": Tensor("INT64", by)}
        return {name: found[name] for name in output_names}


@dataclass(slots=True)
class SimulatedRepository:
    """A repository in memory: the source that the reconciler scans, and the loader that loads from it.

    Args:
        random: Chance.
        on_run: Told of the version, the jobs and the number of rows of each run.
    """

    random: Random
    on_run: Callable[[ServedVersion, Sequence[int], int], None]
    models: dict[str, ModelSource] = field(default_factory=dict)
    configs: dict[str, ModelConfig] = field(default_factory=dict)
    broken: set[tuple[str, int]] = field(default_factory=set)
    stamps: dict[tuple[str, int], int] = field(default_factory=dict)
    seen: Mapping[str, ModelSource] = field(default_factory=dict)
    """What the last scan gave."""
    notes: tuple[str, ...] = ()
    is_gone: bool = False
    root: Path = Path("simulated")

    def scan(self) -> Mapping[str, ModelSource]:
        """Gives all models. OSError: the repository is away."""
        if self.is_gone:
            raise OSError(2, "it is away")
        self.seen = {name: source for name, source in self.models.items() if source.versions}
        return self.seen

    def root_id(self) -> tuple[int, int]:
        """Gives the same root for ever."""
        return (0, 0)

    def path(self, model: str, version: int) -> VersionPath:
        """Names a folder that is nowhere."""
        return version_path(self.root, model, version)

    def see(self, model: str, version: int) -> SeenFiles:
        """Gives what changes when a version is put right."""
        return SeenFiles(Marks(inode=1 + self.stamps.get((model, version), 0)))

    def version_stamp(self, model: str, version: int) -> Stamp:
        """Gives what changes when a version is put right."""
        return self.see(model, version).stamp

    def holds(self, model: str, version: int, sums: Mapping[str, str]) -> bool:
        """Tells whether a version was put right since it was loaded."""
        return sums == self._sums(model, version)

    def _sums(self, model: str, version: int) -> dict[str, str]:
        return {"model.onnx": str(self.version_stamp(model, version))}

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:  # noqa: ARG002
        """Loads a version. LoadError: it is broken."""
        if (path.model, path.version) in self.broken:
            raise LoadError("file 'model.onnx': expected a model, found none")
        config = self.configs[path.model]
        session = SimulatedSession(int(path.model[1:]), path.version, lambda *run: self.on_run(served, *run))
        signature = Signature((INPUT,), OUTPUTS, config.max_batch_size > 0)
        real, costs = cast(Session, session), CoinCosts(self.random)
        served = ServedVersion(path.model, path.version, real, signature, config, {}, None, b"", False, costs=costs)
        served.file_sums = self._sums(path.model, path.version)
        return served

    def as_source(self) -> RepositorySource:
        """Gives this as what the reconciler takes."""
        return cast(RepositorySource, self)

    def as_loader(self) -> Loader:
        """Gives this as what the reconciler takes."""
        return cast(Loader, self)
