"""Drives the service's state machines by chance on a virtual clock: `fitserve-bench simulate`.

They are engine, batcher, registry, reconciler and version policy. A world is one service with its repository and its
callers. A step is one thing that happens in it: a request, a cancellation, a turn of the loop, a timer, the end of a
run or of a load, a publish, a label that moves, a command. What happens is decided by a seed alone, so a failure is
replayed by the seed that its text names. The worlds of a simulation have the seeds `seed`, `seed + 1`, …
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Final

import numpy as np

from fitserve_benchmarks.simulated_parts import SimulatedRepository, VirtualExecutor, VirtualLoop
from fitserve_benchmarks.simulation_laws import ALL_OUTPUTS, PRIORITIES, Ask, Held, Laws, is_over_room, is_within_room
from fitserve_service.engine import BatchRecord, Engine, Job, Outcome
from fitserve_service.errors import ServiceError
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.reconciler import Reconciler
from fitserve_service.registry import Registry
from fitserve_service.runs import Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.source import ModelSource
from fitserve_service.version_policy import State

STEPS_IN_WORLD: Final = 2_000
_MODELS: Final = ("m0", "m1", "m2")
_LABELS: Final = ("stable", "canary")
_REST_STEPS: Final = 20_000
"""More steps without a new arrival than any world needs to come to rest."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What was simulated without a law being broken.

    Args:
        seed: Seed of the first world.
        step_count: Steps in all worlds, those on the way to rest included.
        world_count: Worlds.
        job_count: Requests.
        version_count: Versions that came to READY.
        digest: Sum over all that happened; equal where a seed is replayed.
        elapsed_s: Real time.
    """

    seed: int
    step_count: int
    world_count: int
    job_count: int
    version_count: int
    digest: int
    elapsed_s: float


def simulate(seed: int, steps: int, *, steps_in_world: int = STEPS_IN_WORLD) -> SimulationResult:
    """Simulates until so many steps are made.

    Args:
        seed: Seed of the first world.
        steps: Steps at least.
        steps_in_world: Steps of each world before it comes to rest.

    Raises:
        BrokenLawError: names the law, what happened, and the command that replays it.
    """
    began_s, made, worlds = time.monotonic(), 0, 0
    jobs = versions = digest = 0
    with _quiet():
        while made < steps:
            world = World(seed + worlds, min(steps_in_world, steps))
            world.run()
            made, worlds = made + world.step_count, worlds + 1
            jobs, versions = jobs + len(world.asks), versions + world.ready_count
            digest = zlib.crc32(repr(world.digest).encode(), digest)
    return SimulationResult(seed, made, worlds, jobs, versions, digest, time.monotonic() - began_s)


class World:
    """One simulated service.

    Args:
        seed: Decides everything.
        steps: Steps before it comes to rest.
    """

    def __init__(self, seed: int, steps: int) -> None:
        self._replay = f"fitserve-bench simulate --seed {seed} --steps {steps}"
        self._steps = steps
        self.random = Random(seed)
        self.laws = Laws()
        self.loop = VirtualLoop()
        self.runners, self.loaders = VirtualExecutor(self.random), VirtualExecutor(self.random)
        self.repository = SimulatedRepository(self.random, self._on_run)
        self.registry = Registry()
        self._room_bytes = self.random.choice((300, 1 << 30))
        self.engine = Engine(
            self.loop,
            self,
            clock=lambda: self.loop.now_s,
            runners=self.runners,
            max_queued_bytes=self._room_bytes,
        )
        self.reconciler = Reconciler(
            self.repository.as_source(), self.repository.as_loader(), self.registry, loaders=self.loaders, rest_s=0.0
        )
        self.asks: list[Ask] = []
        self._open: dict[int, Ask] = {}
        self.step_count = self.digest = self.ready_count = 0
        self._is_unloaded = dict.fromkeys(_MODELS, False)
        self._states: dict[str, dict[int, State]] = {name: {} for name in _MODELS}
        self._labels: dict[str, dict[str, int]] = {name: {} for name in _MODELS}
        self._loaded: dict[str, dict[int, ServedVersion]] = {name: {} for name in _MODELS}
        self._renewed: set[ServedVersion] = set()
        self._open_commands: dict[int, str] = {}
        self._command_count = 0
        self.registry.subscribe(self._on_change)
        self._furnish()

    def run(self) -> None:
        """Makes all steps, then lets the world come to rest. BrokenLawError: a law was broken."""
        names, weights = zip(*self._choices(), strict=True)
        while self.step_count < self._steps:
            self._step(self.random.choices(names, weights)[0])
        self._come_to_rest()

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:
        """Takes part in the digest."""
        self._note("batch", served.model, served.version, batch.request_count, batch.example_count)

    def _step(self, action: Callable[[], object]) -> None:
        self.step_count += 1
        action()
        self._check_queues()
        is_awake = self.engine.is_idle() or self.loop.has_work() or self.runners.has_work()
        self.laws.expect(8, is_awake, "jobs are queued and nothing is to come")
        self.laws.hold(self._replay)

    def _check_queues(self) -> None:
        queues, none = self._queues(), Held()
        for served, queued in self.engine.queued_examples().items():
            held = queues.get(served, none)
            if queued != held.examples or not held.is_within(served.config):
                self.laws.expect(7, False, f"{served.model}: {queued} examples counted, {held} queued, {served.config}")
        if not is_within_room(queues, self._room_bytes):
            self.laws.expect(7, False, f"{list(queues.values())} queued, room for {self._room_bytes} bytes")

    def _queues(self) -> dict[ServedVersion, Held]:
        """Counts what waits, from outside: by the jobs that have no outcome yet."""
        queues: dict[ServedVersion, Held] = {}
        for ask in self._open.values():
            if ask.job.is_queued:
                queues.setdefault(ask.job.lease.served, Held()).add(ask.job)
        return queues

    def _note(self, *what: object) -> None:
        self.digest = zlib.crc32(repr((self.step_count, *what)).encode(), self.digest)

    # What the world is made of.

    def _furnish(self) -> None:
        for name in _MODELS:
            size = self.random.choice((0, 1, 4, 8))
            queue_ms = self.random.choice((0.0, 0.0, 8.0, 40.0))
            self.repository.configs[name] = ModelConfig(
                max_batch_size=size,
                max_queue_delay_ms=self.random.choice((0.0, 0.0, 5.0, 50.0)),
                max_queued_examples=self.random.choice((4, 16, 64)),
                max_queued_bytes=self.random.choice((100, 800, 1 << 20)),
                max_queue_ms=queue_ms,
                least_queued_requests=self.random.choice((1, 1, 3)),
                # How long a queue is depends on how many runs share it: law 7 counts for one at a time.
                parallel_runs=1 if queue_ms else self.random.choice((1, 2, 3)),
                batch_size_buckets=self.random.choice(((), (2, 8))) if size == 8 else (),
                spot_check_share=0.0,  # drawn by no seed
            )
            keep = self.random.choice((1, 1, 2))
            self.repository.models[name] = ModelSource((1,), {}, Overrides({"keep_versions": keep}))

    def _choices(self) -> list[tuple[Callable[[], object], int]]:
        return [
            (self._submit, 30),
            (self._burst, 3),
            (self._cancel, 5),
            (self.loop.turn, 25),
            (self._fire, 5),
            (self._advance, 8),
            (self.runners.end_one, 15),
            (self.reconciler.reconcile_once, 5),
            (self.loaders.end_one, 4),
            (self._publish, 1),
            (self._remove, 1),
            (self._repair, 1),
            (self._move_label, 1),
            (self._lose, 1),
            (self._command, 1),
        ]

    # What callers do.

    def _submit(self) -> None:
        """A request arrives."""
        name = self.random.choice(_MODELS)
        try:
            lease = self.registry.lease(name)
        except ServiceError:
            return
        config = lease.served.config
        number, count = len(self.asks), self.random.randint(0, config.max_batch_size) if config.max_batch_size else 1
        is_bad = count > 0 and self.random.random() < 0.03
        rows = np.array([(number, row, is_bad and row == count - 1) for row in range(count)], np.int64).reshape(-1, 3)
        outputs = self.random.choice((ALL_OUTPUTS, ALL_OUTPUTS, ("who",)))
        limit_s = self.random.choice((None, None, 0.0, 0.003, 0.1))
        deadline_s = None if limit_s is None else self.loop.now_s + limit_s
        prepared = Prepared.check(lease.served.signature, {"x": Tensor("INT64", rows)}, outputs)
        job = Job(lease, prepared, deadline_s, self.random.choice(PRIORITIES), lambda _, done: finish(done))
        ask = Ask(number, job, int(name[1:]), lease.served.version, is_bad)

        def finish(outcome: Outcome) -> None:
            self._note("done", number, getattr(outcome, "reason", ""))
            self._open.pop(number, None)
            self.laws.on_done(ask, outcome, self.loop.now_s)

        queues = self._queues()
        is_refused = queues.get(lease.served, Held()).must_refuse(job, self.loop.now_s)
        ask.was_full = is_refused or is_over_room(queues, job, self._room_bytes)
        self.asks.append(ask)
        self._open[number] = ask
        self.engine.submit(job)

    def _burst(self) -> None:
        """Many requests arrive before the loop turns."""
        for _ in range(self.random.randint(2, 12)):
            self._submit()

    def _cancel(self) -> None:
        """A caller goes away: of a job that waits, runs or has been answered."""
        if self.asks:
            ask = self.random.choice(self.asks[-20:])
            ask.is_cancelled = True
            self.engine.cancel(ask.job)

    # What happens to the repository.

    def _publish(self) -> None:
        """A version appears, some of them broken."""
        name, source = self._some_model()
        number = max(source.versions, default=0) + 1
        if self.random.random() < 0.2:
            self.repository.broken.add((name, number))
        self.repository.models[name] = replace(source, versions=(*source.versions, number))

    def _remove(self) -> None:
        """A version is deleted, the last one seldom."""
        name, source = self._some_model()
        if len(source.versions) > 1 or (source.versions and self.random.random() < 0.1):
            gone = self.random.choice(source.versions)
            self.repository.models[name] = replace(source, versions=tuple(v for v in source.versions if v != gone))

    def _repair(self) -> None:
        """A broken version is put right."""
        if self.repository.broken:
            which = self.random.choice(sorted(self.repository.broken))
            self.repository.broken.discard(which)
            self.repository.stamps[which] = self.repository.stamps.get(which, 0) + 1

    def _move_label(self) -> None:
        """A label is set, moved or taken away."""
        name, source = self._some_model()
        labels = dict(source.labels)
        labels.pop(label := self.random.choice(_LABELS), None)
        if source.versions and self.random.random() < 0.7:
            labels[label] = self.random.choice(source.versions)
        self.repository.models[name] = replace(source, labels=labels)

    def _lose(self) -> None:
        """The repository goes away or comes back."""
        self.repository.is_gone = self.random.random() < 0.3

    def _command(self) -> None:
        """A load or an unload is asked for."""
        name, is_unload = self.random.choice(_MODELS), self.random.random() < 0.4
        self._command_count += 1
        number = self._command_count
        self._open_commands[number] = name
        self._is_unloaded[name] = is_unload

        def answered(error: ServiceError | None) -> None:
            is_first = self._open_commands.pop(number, None) is not None
            self.laws.expect(12, is_first, f"command {number} on {name}: answered twice, now with {error}")

        (self.reconciler.unload if is_unload else self.reconciler.load)(name, answered)

    def _advance(self) -> None:
        """Time passes."""
        self.loop.advance(self.random.choice((0.0, 0.0005, 0.004, 0.06)))

    def _fire(self) -> None:
        """A timer goes off, now and then a moment early."""
        self.loop.fire(early_s=self.random.choice((0.0, 0.0, 0.0001)))

    def _some_model(self) -> tuple[str, ModelSource]:
        name = self.random.choice(_MODELS)
        return name, self.repository.models[name]

    # What is held to the laws.

    def _on_run(self, served: ServedVersion, jobs: Sequence[int], row_count: int) -> None:
        if row_count > (most := max(served.config.max_batch_size, 1)):
            self.laws.expect(4, False, f"{served.model}: a batch of {row_count} rows, at most {most} may be")
        entries = {entry.version: entry for entry in self.registry.model(served.model).versions}
        entry = entries.get(served.version)
        is_held = entry is not None and entry.served is served and entry.state in (State.READY, State.UNLOADING)
        is_held |= served in self._renewed
        self.laws.expect(5, is_held, f"{served.model} version {served.version}: ran, and is {entry}")
        for ask in map(self.asks.__getitem__, jobs):
            self.laws.expect(1, not ask.outcomes, f"job {ask.number}: run after its outcome")
            deadline_s = ask.job.deadline_s
            # A task that does its work only when it ends began earlier, when the deadline may not have passed.
            is_in_time = self.runners.is_ending or deadline_s is None or deadline_s > self.loop.now_s
            self.laws.expect(4, is_in_time, f"job {ask.number}: run though its deadline has passed")

    def _on_change(self, model: str) -> None:
        states, labels = self.registry.states(model), dict(self.registry.labels(model))
        self._note(model, sorted(states.items()), sorted(labels.items()))
        before, labels_before = self._states[model], self._labels[model]
        self.ready_count += sum(states[v] is State.READY and before.get(v) is not State.READY for v in states)
        loaded, loaded_before = self.registry.served(model), self._loaded[model]
        stayed = [v for v in before if before[v] is states.get(v) is State.READY]
        self._renewed |= {loaded_before[v] for v in stayed if loaded_before[v] is not loaded[v]}
        self._states[model], self._labels[model], self._loaded[model] = states, labels, loaded
        may_go = self._is_unloaded[model] or model not in self.repository.seen
        self.laws.on_states(self.registry, model, before, may_go)
        self.laws.on_labels(self.registry, model, before, labels_before)

    # How it ends.

    def _come_to_rest(self) -> None:
        self.repository.is_gone = False
        if is_closed := self.random.random() < 0.3:
            self.laws.is_draining = True
            self._step(self.engine.close)
        # A timer that watches runs sets itself again while there are any: it comes last.
        ends = (self.loop.turn, self.runners.end_one, self.loop.fire)
        for _ in range(_REST_STEPS):
            if not any(self._made(end) for end in ends):
                break
        self._settle_versions()
        self.laws.expect(1, all(len(ask.outcomes) == 1 for ask in self.asks), "a job was never answered")
        self.laws.expect(1, self.engine.is_idle(), f"the engine is not idle at rest (closed: {is_closed})")
        self.laws.expect(11, not self.engine.queued_examples(), "a queue is left at rest")
        self.laws.expect(12, not self._open_commands, f"commands never answered: {self._open_commands}")
        self._take_all_out()
        self.laws.hold(self._replay)

    def _made(self, end: Callable[[], bool]) -> bool:
        found: list[bool] = []
        self._step(lambda: found.append(end()))
        return found[0]

    def _settle_versions(self) -> None:
        for _ in range(100):
            self._step(self.reconciler.reconcile_once)
            while self._made(self.loaders.end_one):
                pass
        for name in _MODELS:
            moving = {State.PENDING, State.LOADING, State.UNLOADING} & set(self.registry.states(name).values())
            self.laws.expect(11, not moving, f"{name}: still moving at rest: {self.registry.states(name)}")

    def _take_all_out(self) -> None:
        """A version that no lease holds is let go at once."""
        self._is_unloaded = dict.fromkeys(_MODELS, True)
        for model in self.registry.snapshot():
            for entry in model.versions:
                if entry.state is State.READY:
                    self.registry.retire(model.name, entry.version, lambda: None)
            states = self.registry.states(model.name)
            self.laws.expect(11, State.UNLOADING not in states.values(), f"{model.name}: leases left: {states}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the service logs of loads and refusals, millions of lines, from being made."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
