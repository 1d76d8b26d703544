"""A set of examples on its way through the engine: batches, one at a time, and every end gives the versions back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

from fitserve_contract.repository import version_path
from fitserve_service.batcher import Priority
from fitserve_service.engine import Completed, Job, Outcome, Timing
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.series import MAX_ROWS, ExampleSet, Series, batch_size
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor

COUNT = 600
ROWS = Tensor("FP32", np.arange(2 * COUNT, dtype=np.float32).reshape(COUNT, 2))


class Queue:
    """Takes jobs as the engine does, and answers them when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.cancelled: list[Job] = []
        self.refusal: ServiceError | None = None

    def submit(self, job: Job) -> None:
        if self.refusal is not None:
            job.on_done(job, self.refusal)
        else:
            self.jobs.append(job)

    def cancel(self, job: Job) -> None:
        self.cancelled.append(job)

    def answer(self, outcome: Outcome | None = None) -> None:
        job = self.jobs.pop(0)
        answered = Completed(dict.fromkeys(job.output_names, job.inputs["x"]), Timing(0.0, 0.0))
        job.lease.release()
        job.on_done(job, answered if outcome is None else outcome)


class Lease:
    def __init__(self, served: ServedVersion) -> None:
        self.served = served
        self.release_count = 0

    def release(self) -> None:
        self.release_count += 1


class Tally:
    def __init__(self) -> None:
        self.seen: list[tuple[slice, int]] = []
        self.failure: Exception | None = None

    def add(self, rows: slice, answers: Sequence[Tensor]) -> None:
        if self.failure is not None:
            raise self.failure
        assert all(np.array_equal(answer.array, ROWS.array[rows]) for answer in answers)
        self.seen.append((rows, len(answers)))

    def message(self) -> bytes:
        return b"sums"


def served(root: Path, content: bytes, **overrides: Any) -> ServedVersion:
    builders.bare_version(root, "m", 1, content)
    return Loader("cpu").load(version_path(root, "m", 1), Overrides(overrides))


class World:
    """One series over versions of `scaled`."""

    def __init__(self, root: Path, version_count: int = 1) -> None:
        version = served(root, builders.scaled())
        self.queue, self.tally = Queue(), Tally()
        self.leases = [Lease(version) for _ in range(version_count)]
        self.answers: list[bytes | ServiceError] = []
        examples = ExampleSet({"x": ROWS}, COUNT, ("y",) * version_count, self.tally)
        queue: Any = self.queue
        self.series = Series(queue, self.leases, examples, 12.5, self.answers.append)

    def reason(self) -> Reason:
        (answer,) = self.answers
        assert isinstance(answer, ServiceError)
        return answer.reason

    def release_counts(self) -> set[int]:
        return {lease.release_count for lease in self.leases}


@pytest.mark.parametrize("version_count", [1, 2])
def test_a_set_takes_one_place_in_the_queue_and_is_run_in_order(tmp_path: Path, version_count: int) -> None:
    world = World(tmp_path, version_count)
    world.series.start()
    for _ in range(3 * version_count):
        assert not world.answers
        assert len(world.queue.jobs) == 1
        job = world.queue.jobs[0]
        assert (job.priority, job.deadline_s) == (Priority.EVALUATE, 12.5)
        assert world.release_counts() == {0}
        world.queue.answer()
    assert world.answers == [b"sums"]
    assert world.release_counts() == {1}
    edges = [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert world.tally.seen == [(rows, version_count) for rows in edges]


def fail_in_the_queue(world: World) -> None:
    world.queue.answer(ServiceError(Reason.DEADLINE_PASSED, "late"))


def fail_in_the_tally(world: World) -> None:
    world.tally.failure = ServiceError(Reason.DEADLINE_PASSED, "labels")
    world.queue.answer()
    world.queue.answer()


@pytest.mark.parametrize("fail", [fail_in_the_queue, fail_in_the_tally])
def test_a_failed_batch_ends_it_with_its_error(tmp_path: Path, fail: Callable[[World], None]) -> None:
    world = World(tmp_path, 2)
    world.series.start()
    fail(world)
    assert world.reason() is Reason.DEADLINE_PASSED
    assert (world.queue.jobs, world.release_counts()) == ([], {1})


def test_a_full_queue_refuses_it_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.queue.refusal = ServiceError(Reason.QUEUE_FULL, "full")
    world.series.start()
    assert world.reason() is Reason.QUEUE_FULL
    assert world.release_counts() == {1}


def test_what_nobody_foresaw_is_an_incident(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.tally.failure = ZeroDivisionError("secret")
    world.series.start()
    world.queue.answer()
    assert world.reason() is Reason.INTERNAL
    assert "secret" not in str(world.answers[0])


def test_a_cancelled_set_keeps_its_versions_until_the_batch_that_runs_is_back(tmp_path: Path) -> None:
    world = World(tmp_path, 2)
    world.series.start()
    world.series.cancel()
    world.series.cancel()
    assert world.reason() is Reason.CALLER_CANCELLED
    assert (world.queue.cancelled, world.release_counts()) == (world.queue.jobs, {0})
    world.queue.answer()
    assert (len(world.answers), world.queue.jobs, world.release_counts()) == (1, [], {1})


def test_a_set_that_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.series.start()
    for _ in range(3):
        world.queue.answer()
    world.series.cancel()
    assert (world.answers, world.queue.cancelled, world.release_counts()) == ([b"sums"], [], {1})


@pytest.mark.parametrize(
    ("content", "overrides", "expected"),
    [
        (builders.scaled(), {}, MAX_ROWS),
        (builders.scaled(), {"max_batch_size": 10}, 10),
        (builders.scaled(), {"max_batch_size": 100, "max_queued_examples": 60}, 60),
        (builders.fixed_shape(), {}, 2),
        (builders.mean_over_batch(), {}, MAX_ROWS),
    ],
)
def test_batches_are_what_the_version_takes(
    tmp_path: Path, content: bytes, overrides: dict[str, Any], expected: int
) -> None:
    version = served(tmp_path, content, **overrides)
    assert batch_size([version], ExampleSet({"x": ROWS}, COUNT, ("y",), Tally())) == expected
    assert batch_size([version], ExampleSet({"x": ROWS}, 1, ("y",), Tally())) == 1
