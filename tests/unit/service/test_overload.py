"""Ten times what a model can do, on a clock that stands still but for events: what waits is short in time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, cast

import numpy as np
import pytest

from fitserve_benchmarks.simulated_parts import INPUT, OUTPUTS, SimulatedSession
from fitserve_service.batcher import Priority
from fitserve_service.costs import CostTable
from fitserve_service.engine import BatchRecord, Completed, Engine, Job, Outcome
from fitserve_service.errors import Reason
from fitserve_service.model_config import ModelConfig, settle_queue
from fitserve_service.runs import Prepared
from fitserve_service.served_version import Lease, ServedVersion
from fitserve_service.session import Session
from fitserve_service.signature import Signature, Tensor

RUN_S = 0.005
CAPACITY = 1 / RUN_S
DURATION_S = 8.0


class Loop:
    """Events in the order of their time, and callbacks in between."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._numbers = count()

    def post(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    call_soon = post

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._numbers), callback))

    def run(self) -> None:
        """Runs until nothing is to come."""
        while self._soon or self._events:
            if self._soon:
                self._soon.popleft()()
            else:
                self.now_s, _, callback = heapq.heappop(self._events)
                callback()


class Costs(CostTable):
    """A row takes RUN_S, however many run together; nothing is learnt."""

    def __init__(self) -> None:
        super().__init__()
        super().record(1, 3, RUN_S)

    def record(self, rows: int, row_elements: int, run_s: float) -> None:
        pass


class Runners(Executor):
    """Runs take as long as they should."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        (run,) = arguments
        self._loop.call_later(run.example_count * RUN_S, lambda: future.set_result(fn(*arguments, **named)))
        return future


@dataclass
class Held:
    """A lease of a version that nobody takes away."""

    served: ServedVersion

    def release(self) -> None:
        pass


@dataclass
class World:
    """One version behind an engine, and what became of each request."""

    config: ModelConfig
    max_queued_bytes: int = 1 << 30
    loop: Loop = field(default_factory=Loop)
    done: list[tuple[float, float, Outcome]] = field(default_factory=list)
    rows_run: int = 0

    def __post_init__(self) -> None:
        session = cast(Session, SimulatedSession(0, 1, lambda *_: None))
        signature = Signature((INPUT,), OUTPUTS, True)
        config = replace(self.config, spot_check_share=0.0)
        served = ServedVersion("m", 1, session, signature, config, {}, None, b"", False, costs=Costs())
        self.lease = cast(Lease, Held(served))
        self.engine = Engine(
            self.loop,
            self,
            clock=lambda: self.loop.now_s,
            runners=Runners(self.loop),
            max_queued_bytes=self.max_queued_bytes,
        )

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:  # noqa: ARG002
        self.rows_run += batch.example_count

    def arrive(self, rate: float, duration_s: float, patience_s: float | None, priority: Priority) -> None:
        """Has requests of one row arrive at random times."""
        random = np.random.default_rng(0)
        at_s = 0.0
        while (at_s := at_s + float(random.exponential(1 / rate))) < duration_s:
            self.loop.call_later(at_s, lambda: self.submit(patience_s, priority))

    def submit(self, patience_s: float | None, priority: Priority) -> None:
        begin_s = self.loop.now_s
        rows = np.zeros((1, 3), np.int64)
        prepared = Prepared.check(self.lease.served.signature, {"x": Tensor("INT64", rows)}, ())
        deadline_s = None if patience_s is None else begin_s + patience_s

        def finish(_: Job, outcome: Outcome) -> None:
            self.done.append((begin_s, self.loop.now_s - begin_s, outcome))

        self.engine.submit(Job(self.lease, prepared, deadline_s, priority, finish))

    @property
    def answered_s(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([took_s for _, took_s, outcome in self.done if isinstance(outcome, Completed)])

    @property
    def refused(self) -> list[tuple[float, Reason]]:
        return [(took_s, outcome.reason) for _, took_s, outcome in self.done if not isinstance(outcome, Completed)]


BOUNDED = ModelConfig(max_batch_size=256, max_queue_ms=12 * RUN_S * 1e3, least_queued_requests=12)
"""As with `--max-queue-ms`: the latency of those who are let in is bounded."""


def loaded(
    rate: float,
    patience_s: float | None = None,
    priority: Priority = Priority.PREDICT,
    config: ModelConfig | None = None,
    duration_s: float = DURATION_S,
) -> World:
    """A world after so long a load."""
    world = World(config or BOUNDED)
    world.arrive(rate, duration_s, patience_s, priority)
    world.loop.run()
    assert world.engine.is_idle()
    return world


def test_at_ten_times_the_capacity_it_does_what_it_can_and_nobody_waits_long() -> None:
    calm, flood = loaded(0.8 * CAPACITY), loaded(10 * CAPACITY)

    assert len(calm.refused) < 0.002 * len(calm.done)
    assert len(flood.answered_s) > 0.99 * CAPACITY * DURATION_S
    assert np.quantile(flood.answered_s, 0.99) <= 2 * np.quantile(calm.answered_s, 0.99)
    assert set(flood.refused) == {(0.0, Reason.QUEUE_FULL)}


def test_by_default_a_closed_loop_is_queued_and_a_flood_is_bounded_by_its_deadlines() -> None:
    config, _ = settle_queue(ModelConfig(max_batch_size=1), RUN_S * 1e3)
    world = World(config)
    for _ in range(1_000):
        world.submit(None, Priority.PREDICT)
    assert world.refused == []
    flood = loaded(10 * CAPACITY, patience_s=1.0, config=config)
    assert flood.answered_s.max() <= 1.0
    assert flood.rows_run == len(flood.answered_s)
    assert len(flood.answered_s) > 0.95 * CAPACITY * DURATION_S


def test_without_a_bound_in_time_the_admitted_wait_for_seconds() -> None:
    flood = loaded(10 * CAPACITY, config=ModelConfig(max_batch_size=256), duration_s=3.0)

    assert np.quantile(flood.answered_s, 0.99) > 2.0


def test_callers_who_hardly_wait_are_answered_in_time_or_refused_and_nothing_is_run_in_vain() -> None:
    flood = loaded(10 * CAPACITY, patience_s=4.5 * RUN_S)

    assert flood.answered_s.max() <= 4.5 * RUN_S
    assert flood.rows_run == len(flood.answered_s)
    assert len(flood.answered_s) > 0.95 * CAPACITY * DURATION_S


def test_what_waits_to_be_evaluated_is_bounded_in_examples_alone() -> None:
    config = ModelConfig(max_batch_size=1, max_queue_ms=10.0, max_queued_examples=50)
    flood = loaded(10 * CAPACITY, priority=Priority.EVALUATE, config=config, duration_s=2.0)

    assert flood.answered_s.max() == pytest.approx(51 * RUN_S, abs=2 * RUN_S)


def test_a_refusal_says_what_the_queue_holds() -> None:
    world = World(ModelConfig(max_batch_size=1, max_queue_ms=2.5 * RUN_S * 1e3))
    for _ in range(3):
        world.submit(None, Priority.PREDICT)
    ((_, _, refusal),) = world.done

    assert not isinstance(refusal, Completed)
    assert refusal.reason is Reason.QUEUE_FULL
    expected = "model 'm': 2 requests wait that take about 10.0 ms, and its queue holds work for 12.5 ms; try later"
    assert refusal.message == expected


def test_a_queue_that_others_left_no_room_for_is_not_kept() -> None:
    world = World(ModelConfig(max_batch_size=1), max_queued_bytes=30)
    other = World(ModelConfig(max_batch_size=1))
    world.submit(None, Priority.PREDICT)
    world.lease = other.lease
    world.submit(None, Priority.PREDICT)
    ((_, _, refusal),) = world.done
    world.loop.run()

    assert not isinstance(refusal, Completed)
    assert refusal.message == "model 'm': the queues of all models hold 30 bytes; try later"
    assert world.engine.queued_examples() == {}
