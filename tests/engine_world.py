"""An engine on a loop of virtual time, with real sessions on tiny models behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from virtual_loop import VirtualLoop

from fitserve_contract.onnx_file import read_facts
from fitserve_contract.tensor_bytes import Array
from fitserve_service.batcher import Priority
from fitserve_service.costs import CostTable
from fitserve_service.engine import BatchRecord, Completed, Engine, Job, Outcome
from fitserve_service.errors import ServiceError
from fitserve_service.model_config import ModelConfig
from fitserve_service.registry import Registry
from fitserve_service.runs import Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import Session, SessionOptions
from fitserve_service.signature import Signature, Tensor
from fitserve_service.version_policy import State

BAD = 99
"""An index that `builders.gather` refuses."""


@dataclass
class Observer:
    batches: list[tuple[str, BatchRecord]] = field(default_factory=list)

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:
        self.batches.append((served.model, batch))

    @property
    def sizes(self) -> list[int]:
        return [batch.request_count for _, batch in self.batches]


class Free(CostTable):
    """Says that every run is short, so that all of them happen on the loop."""

    def expected_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
        return 0.0

    def floor_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
        return 0.0


class World:
    """An engine with versions behind it, and the outcomes of all jobs by their number."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.observer = Observer()
        self.registry = Registry()
        self.engine = Engine(self.loop, self.observer, clock=lambda: self.loop.now_s)
        self.jobs: list[Job] = []
        self.outcomes: dict[int, list[Outcome]] = {}
        self.order: list[int] = []

    def serve(self, name: str, model: bytes, costs: CostTable | None = None, **config: object) -> ServedVersion:
        session = Session(model, read_facts(model), SessionOptions("cpu"))
        settings = ModelConfig(**{"max_batch_size": 256, **config})  # type: ignore[arg-type]
        signature = Signature(session.inputs, session.outputs, settings.max_batch_size > 0)
        served = ServedVersion(name, 1, session, signature, settings, {}, None, b"", False, costs=costs or Free())
        self.registry.set_ready(served)
        return served

    def submit(
        self, name: str, array: Array, *, deadline_s: float | None = None, priority: Priority = Priority.PREDICT
    ) -> int:
        lease = self.registry.lease(name)
        number = len(self.jobs)
        spec = lease.served.signature.inputs[0]
        prepared = Prepared.check(lease.served.signature, {spec.name: Tensor(spec.datatype, array)}, ())
        self.outcomes[number] = []
        job = Job(lease, prepared, deadline_s, priority, lambda _, outcome: self._done(number, outcome))
        self.jobs.append(job)
        self.engine.submit(job)
        return number

    def outcome(self, number: int) -> Outcome:
        assert len(self.outcomes[number]) == 1
        return self.outcomes[number][0]

    def answer(self, number: int, name: str = "y") -> Array:
        outcome = self.outcome(number)
        assert isinstance(outcome, Completed), outcome
        return outcome.outputs[name].array

    def error(self, number: int) -> ServiceError:
        outcome = self.outcome(number)
        assert isinstance(outcome, ServiceError), outcome
        return outcome

    def settle(self) -> None:
        self.loop.run_until(self.engine.is_idle)

    def is_free(self) -> bool:
        """Takes every version out of service: it goes at once when no lease is left."""
        for model in self.registry.snapshot():
            self.registry.retire(model.name, 1, lambda: None)
        return all(model.versions[0].state is State.UNLOADED for model in self.registry.snapshot())

    def _done(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number].append(outcome)
        self.order.append(number)


@contextmanager
def world() -> Iterator[World]:
    """Gives a world, and closes its engine."""
    made = World()
    try:
        yield made
    finally:
        made.engine.close()


def rows(*values: float) -> Array:
    return np.array([[value, -value] for value in values], np.float32)


def indices(*values: int) -> Array:
    return np.array(values, np.int64)
