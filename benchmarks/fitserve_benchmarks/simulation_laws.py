"""The laws that the service's state machines are held to while they are simulated.

1. Each job gets exactly one outcome, and none is left when all has come to rest.
2. An answer holds the job's own rows, in order, all of them from the version that the job leased.
3. A job fails for its own sake alone: OPERATOR_FAILED with a row that is to be refused, CALLER_CANCELLED if it was
   cancelled, DEADLINE_PASSED if its deadline has passed, QUEUE_FULL if it would overfill the queue or begin too late
   behind what waits, DRAINING if a drain has begun; and a job with a row that is to be refused is never answered as if
   it had none. INTERNAL never.
4. No batch begins with a job whose deadline has passed, or that was cancelled before; none has too many rows.
5. A version runs only while it is READY, or with leases out: UNLOADING, or renewed while it was READY.
6. Jobs of one version, priority and kind are answered in the order in which they came, where it has one run at a time.
7. A queue never holds more than its bounds of examples, bytes and work, but that an empty one takes any single
   request, one without work any single request with it, and as to work it holds as many as it may at least. All
   queues together never hold more bytes than theirs, but for a single request.
8. While jobs are queued, something is to come that will run them: no wake-up is lost.
9. A model that has a READY version keeps one, unless it is unloaded by command or has left the repository.
10. A label that answered goes on answering as long as its version is READY; where there is no label, a model with a
    READY version answers.
11. At rest no lease is out, no version is on its way, and all that is aspired is READY or FAILED.
12. Each load and unload is answered exactly once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fitserve_benchmarks.simulated_parts import ROW_S
from fitserve_service.batcher import Priority
from fitserve_service.engine import Completed, Job, Outcome
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.model_config import ModelConfig
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.version_policy import State

ALL_OUTPUTS: Final = ("who", "by")


class BrokenLawError(AssertionError):
    """The simulated service broke a law; the text names it and how to see it again."""


@dataclass(slots=True)
class Ask:
    """A job and what is known of it from outside.

    Args:
        number: Its number, in its rows too.
        job: What was submitted.
        model: Number of the model leased.
        version: Version leased.
        is_bad: One of its rows is to be refused.
        was_full: The queue had no room for it, or held too much work for its deadline.
    """

    number: int
    job: Job
    model: int
    version: int
    is_bad: bool
    was_full: bool = False
    is_cancelled: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def stream(self) -> Hashable:
        """Jobs with equal ones are answered in order: same version, priority and kind."""
        rows = min(self.job.example_count, 1)
        return (id(self.job.lease.served), self.job.priority, self.job.output_names, rows)


@dataclass(slots=True)
class Laws:
    """Collects what breaks a law: the engine hides exceptions of those whom it calls back."""

    breaches: list[str] = field(default_factory=list)
    is_draining: bool = False
    _last: dict[Hashable, int] = field(default_factory=dict)

    def expect(self, law: int, is_kept: bool, text: str) -> None:
        """Notes a breach."""
        if not is_kept:
            self.breaches.append(f"law {law}: {text}")

    def hold(self, replay: str) -> None:
        """Raises what was noted.

        Raises:
            BrokenLawError: with the first breach and how to replay it.
        """
        if self.breaches:
            raise BrokenLawError(f"{self.breaches[0]}; replay: {replay}")

    def on_done(self, ask: Ask, outcome: Outcome, now_s: float) -> None:
        """Holds an outcome to laws 1 to 3 and 6."""
        ask.outcomes.append(outcome)
        self.expect(1, len(ask.outcomes) == 1, f"job {ask.number}: a second outcome")
        if isinstance(outcome, Completed):
            self._on_answer(ask, outcome)
        else:
            self._on_error(ask, outcome, now_s)

    def _on_answer(self, ask: Ask, outcome: Completed) -> None:
        self.expect(3, not ask.is_bad, f"job {ask.number}: answered, though a row of it is to be refused")
        names = tuple(outcome.outputs)
        self.expect(2, names == ask.job.output_names, f"job {ask.number}: outputs {names}")
        sent = ask.job.inputs["x"].array
        expected = {"who": sent[:, :2], "by": np.tile([ask.model, ask.version], (len(sent), 1))}
        for name, tensor in outcome.outputs.items():
            is_own = tensor.array.shape == expected[name].shape and bool((tensor.array == expected[name]).all())
            self.expect(
                2, is_own, f"job {ask.number}: '{name}' expected {expected[name].tolist()}, got {tensor.array.tolist()}"
            )
        if ask.job.lease.served.config.parallel_runs == 1:
            self._in_order(ask)

    def _in_order(self, ask: Ask) -> None:
        last = self._last.get(ask.stream, -1)
        self.expect(6, last < ask.number, f"job {ask.number}: answered after job {last}, which came later")
        self._last[ask.stream] = ask.number

    def _on_error(self, ask: Ask, error: ServiceError, now_s: float) -> None:
        deadline_s = ask.job.deadline_s
        is_due = {
            Reason.OPERATOR_FAILED: ask.is_bad,
            Reason.CALLER_CANCELLED: ask.is_cancelled,
            Reason.DEADLINE_PASSED: deadline_s is not None and deadline_s <= now_s,
            Reason.QUEUE_FULL: ask.was_full,
            Reason.DRAINING: self.is_draining,
        }.get(error.reason, False)
        self.expect(3, is_due, f"job {ask.number}: failed without cause: {error.reason} {error.message}")

    def on_states(self, registry: Registry, model: str, before: Mapping[int, State], may_go: bool) -> None:
        """Holds a change of states to laws 9 and 10."""
        states = registry.states(model)
        had, has = (any(state is State.READY for state in them.values()) for them in (before, states))
        self.expect(9, has or not had or may_go, f"{model}: the last READY version went: {before} became {states}")
        if has and not registry.labels(model):
            try:
                registry.lease(model).release()
            except ServiceError as error:
                self.expect(10, False, f"{model}: {states}, and yet: {error.message}")

    def on_labels(self, registry: Registry, model: str, states: Mapping[int, State], labels: Mapping[str, int]) -> None:
        """Holds what labels answer now to what they answered before: law 10."""
        after, now = registry.labels(model), registry.states(model)
        for label in after.keys() & labels.keys():
            answered = states.get(labels[label]) is State.READY and now.get(labels[label]) is State.READY
            is_kept = not answered or now.get(after[label]) is State.READY
            self.expect(10, is_kept, f"{model}: label '{label}' left READY version {labels[label]} for {after[label]}")


@dataclass(slots=True)
class Held:
    """What a queue holds, counted from outside: jobs, examples, bytes, work in seconds; jobs with work, with bytes."""

    jobs: int = 0
    examples: int = 0
    size_bytes: int = 0
    work_s: float = 0.0
    working_jobs: int = 0
    heavy_jobs: int = 0

    def add(self, job: Job) -> None:
        """Counts a job in."""
        self.jobs += 1
        self.examples += max(job.example_count, 1)
        self.size_bytes += _size_bytes(job)
        self.work_s += (work_s := _work_s(job))
        self.working_jobs += work_s > 0
        self.heavy_jobs += job.example_count > 0

    def is_within(self, config: ModelConfig) -> bool:
        """Tells whether a queue may hold as much."""
        has_room = self.examples <= config.max_queued_examples and self.size_bytes <= config.max_queued_bytes
        has_time = self._has_time(config) or self.jobs <= config.least_queued_requests or self.working_jobs <= 1
        return (has_room or self.jobs <= 1) and has_time

    def must_refuse(self, job: Job, now_s: float) -> bool:
        """Tells whether a queue that holds this has no room for a job, or the job no time."""
        after = replace(self)
        after.add(job)
        config = job.lease.served.config
        is_late = job.deadline_s is not None and now_s + self.work_s > job.deadline_s
        is_over = not after._has_time(config) and self.jobs >= config.least_queued_requests
        no_time = self.work_s > 0 and (is_late or is_over)
        return self.jobs > 0 and (no_time or not after.is_within(config))

    def _has_time(self, config: ModelConfig) -> bool:
        return not config.max_queue_ms or self.work_s <= config.max_queue_ms / 1e3


def is_within_room(queues: Mapping[ServedVersion, Held], most_bytes: int) -> bool:
    """Tells whether all queues together may hold what they do."""
    held = list(queues.values())
    return sum(each.size_bytes for each in held) <= most_bytes or sum(each.heavy_jobs for each in held) <= 1


def is_over_room(queues: Mapping[ServedVersion, Held], job: Job, most_bytes: int) -> bool:
    """Tells whether all queues together have no room for a job."""
    held_bytes = sum(each.size_bytes for each in queues.values())
    return held_bytes > 0 and held_bytes + _size_bytes(job) > most_bytes


def _size_bytes(job: Job) -> int:
    return sum(tensor.array.nbytes for tensor in job.inputs.values())


def _work_s(job: Job) -> float:
    is_timed = job.lease.served.config.max_queue_ms and job.priority is Priority.PREDICT
    return job.example_count * ROW_S if is_timed else 0.0


PRIORITIES: Final = (Priority.PREDICT, Priority.PREDICT, Priority.EVALUATE)
