"""Runs requests: queues them by version, joins what has arrived, and answers each exactly once.

The engine lives on the loop thread. A run that is known to be short happens there (handing it over would cost more than
it takes); a long one goes to a runner thread, so that the loop never stalls. Runs of one version never overlap: what
arrives meanwhile forms the next batch.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeAlias

from fitserve_service.batcher import Batcher, Entry, Priority
from fitserve_service.calls import Loop
from fitserve_service.costs import row_elements
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.joining import bucket_size, join, joining_key, split
from fitserve_service.registry import Lease, ServedVersion
from fitserve_service.session import OperatorError
from fitserve_service.signature import Tensor

INLINE_LIMIT_S: Final = 0.001
"""A run expected to take longer goes to a runner thread."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, seconds; the run with joining and splitting."""

    queue_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer to a job: output name to tensor, in the order asked for."""

    outputs: dict[str, Tensor]
    timing: Timing


Outcome: TypeAlias = Completed | ServiceError


@dataclass(slots=True, eq=False)
class Job:
    """One request to run.

    Args:
        lease: The version; the engine releases it before `on_done`.
        inputs: Checked against the version's signature.
        output_names: Outputs wanted, checked.
        example_count: Rows, from the check.
        deadline_s: Monotonic time at which the caller stops waiting; None: never.
        priority: PREDICT before EVALUATE.
        on_done: Takes the outcome, exactly once, on the loop thread.
    """

    lease: Lease
    inputs: dict[str, Tensor]
    output_names: tuple[str, ...]
    example_count: int
    deadline_s: float | None
    priority: Priority
    on_done: Callable[[Outcome], None]
    entry: Entry[Job] | None = field(default=None, init=False)


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One run, for whoever observes.

    Args:
        request_count: Requests joined.
        example_count: Rows, padding left out.
        run_s: Time in the runtime.
        queue_s: How long each request waited.
        has_failed: An operator refused the values.
    """

    request_count: int
    example_count: int
    run_s: float
    queue_s: tuple[float, ...]
    has_failed: bool


class EngineObserver(Protocol):
    """Is told of every run, on the loop thread."""

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:
        """Takes the record of a run."""
        ...


@dataclass(slots=True)
class _Run:
    """One batch on its way through the runtime; made on the loop, run anywhere, answered on the loop."""

    served: ServedVersion
    jobs: list[Job]
    queue_s: list[float]
    example_count: int
    answers: list[dict[str, Tensor] | Exception] = field(default_factory=list)
    input_s: float = 0.0
    run_s: float = 0.0
    output_s: float = 0.0

    @property
    def row_elements(self) -> int:
        return row_elements(self.jobs[0].inputs, self.jobs[0].example_count)


@dataclass(slots=True, eq=False)
class _Lane:
    """The queue of one version."""

    served: ServedVersion
    batcher: Batcher[Job]
    is_running: bool = False
    timer_s: float = 0.0
    """When the timer that was set last goes off."""


class Engine:
    """Runs jobs. Everything but `Loop.post` happens on the loop thread.

    Args:
        loop: The transport's loop.
        observer: Told of every run.
        clock: Monotonic seconds.
        runner_count: Threads for long runs.
        runners: What carries out long runs instead of threads of its own.
    """

    def __init__(
        self,
        loop: Loop,
        observer: EngineObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
        runner_count: int = 2,
        runners: Executor | None = None,
    ) -> None:
        self._loop = loop
        self._observer = observer
        self._clock = clock
        self._runners = runners or ThreadPoolExecutor(runner_count, thread_name_prefix="runner")
        self._lanes: dict[ServedVersion, _Lane] = {}
        self._is_scheduled = False
        self._is_draining = False
        self._job_count = 0

    def submit(self, job: Job) -> None:
        """Queues a job. Never raises: a job that cannot be queued gets its error through `on_done`."""
        self._job_count += 1
        served = job.lease.served
        limit = served.config.max_batch_size
        now_s = self._clock()
        if self._is_draining:
            self._finish(job, _draining())
        elif limit and job.example_count > limit:
            text = f"expected at most {limit} examples in a request to model '{served.model}', got {job.example_count}"
            self._finish(job, ServiceError(Reason.BATCH_TOO_LARGE, text, model=served.model))
        elif job.deadline_s is not None and job.deadline_s <= now_s + _least_run_s(job):
            self._miss(job, 0.0, now_s)
        elif not self._queue(job, now_s):
            text = f"model '{served.model}': its queue holds {served.config.max_queued_examples} examples; try later"
            self._finish(job, ServiceError(Reason.QUEUE_FULL, text, model=served.model))
        elif not self._is_scheduled:
            self._schedule()

    def cancel(self, job: Job) -> None:
        """Takes a queued job back: its caller has gone. One that runs already is answered as ever."""
        if job.entry is not None and job.entry.is_queued:
            self._lanes[job.lease.served].batcher.remove(job.entry)
            self._drop_lane_if_idle(job.lease.served)
            self._finish(job, ServiceError(Reason.CALLER_CANCELLED, "the caller cancelled"))

    def dispatch(self) -> None:
        """Runs what has arrived: one batch of each version, then lets new arrivals in before the next."""
        self._is_scheduled = False
        for lane in list(self._lanes.values()):
            if not lane.is_running:
                self._dispatch_lane(lane)

    def queued_examples(self) -> dict[ServedVersion, int]:
        """Gives how many examples wait, by version."""
        return {served: lane.batcher.queued_examples for served, lane in self._lanes.items()}

    def begin_drain(self) -> None:
        """Refuses new jobs from now on; those queued are still run."""
        self._is_draining = True

    def is_idle(self) -> bool:
        """Tells whether every job has been answered."""
        return self._job_count == 0

    def close(self) -> None:
        """Refuses all that is queued and ends the runner threads, once what they run has ended."""
        self.begin_drain()
        for lane in list(self._lanes.values()):
            for entry in lane.batcher.clear():
                self._finish(entry.item, _draining())
            self._drop_lane_if_idle(lane.served)
        self._runners.shutdown(wait=False, cancel_futures=True)

    def _queue(self, job: Job, now_s: float) -> bool:
        served = job.lease.served
        lane = self._lanes.get(served)
        if lane is None:
            lane = self._lanes[served] = _Lane(served, _batcher_for(served))
        key = joining_key(served.signature, job.inputs, job.output_names, job.example_count)
        latest_s = None if job.deadline_s is None else job.deadline_s - _least_run_s(job)
        job.entry = Entry(job, key, job.example_count, job.priority, latest_s)
        return lane.batcher.add(job.entry, now_s)

    def _miss(self, job: Job, waited_s: float, now_s: float) -> None:
        """Refuses a job that cannot be answered before its deadline, before it costs anything."""
        left_s = (job.deadline_s or 0.0) - now_s
        if left_s <= 0:
            self._finish(job, _deadline_passed(waited_s))
            return
        expected_s = _least_run_s(job)
        job.lease.served.costs.doubt(job.example_count, row_elements(job.inputs, job.example_count))
        self._finish(job, _deadline_too_near(left_s, expected_s))

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_soon(self.dispatch)

    def _dispatch_lane(self, lane: _Lane) -> None:
        now_s = self._clock()
        taken = lane.batcher.take(now_s)
        for entry in taken.late:
            self._miss(entry.item, now_s - entry.arrived_s, now_s)
        if taken.batch:
            jobs = [entry.item for entry in taken.batch]
            rows = sum(job.example_count for job in jobs)
            run = _Run(lane.served, jobs, [now_s - entry.arrived_s for entry in taken.batch], rows)
            self._start(lane, run)
        elif (due_s := lane.batcher.due_s()) is not None:
            if due_s != lane.timer_s:
                lane.timer_s = due_s
                self._loop.call_later(max(due_s - now_s, 0.0), partial(self._on_timer, lane))
        else:
            self._drop_lane_if_idle(lane.served)

    def _on_timer(self, lane: _Lane) -> None:
        # A loop's timer may go off a moment early; then the lane must be free to set it again.
        lane.timer_s = 0.0
        if self._lanes.get(lane.served) is lane and not lane.is_running:
            self._dispatch_lane(lane)

    def _start(self, lane: _Lane, run: _Run) -> None:
        lane.is_running = True
        is_short = run.served.costs.expected_s(run.example_count, run.row_elements) <= INLINE_LIMIT_S
        if is_short and _is_carried_out(run):
            self._complete(lane, run)
        else:
            future = self._runners.submit(_carry_out, run)
            future.add_done_callback(lambda done: self._loop.post(partial(self._came_back, lane, run, done)))

    def _came_back(self, lane: _Lane, run: _Run, future: Future[None]) -> None:
        if future.cancelled():
            run.answers = [_draining()] * len(run.jobs)
        self._complete(lane, run)

    def _complete(self, lane: _Lane, run: _Run) -> None:
        lane.is_running = False
        self._record(run)
        for job, waited_s, answer in zip(run.jobs, run.queue_s, run.answers, strict=True):
            if isinstance(answer, Exception):
                self._finish(job, _run_error(run.served, answer))
            else:
                self._finish(job, Completed(answer, Timing(waited_s, run.input_s + run.run_s + run.output_s)))
        if lane.batcher.entry_count == 0:
            self._drop_lane_if_idle(lane.served)
        elif not self._is_scheduled:
            self._schedule()

    def _record(self, run: _Run) -> None:
        statistics, rows, answered, queue_s = run.served.statistics, run.example_count, run.example_count, run.queue_s
        failed = [index for index, answer in enumerate(run.answers) if isinstance(answer, Exception)]
        if failed:
            answered -= sum(run.jobs[index].example_count for index in failed)
            queue_s = [waited_s for index, waited_s in enumerate(run.queue_s) if index not in failed]
            for index in failed:
                statistics.add_failure(run.queue_s[index] + run.run_s)
        else:
            run.served.costs.record(rows, run.row_elements, run.run_s)
        if queue_s:
            statistics.add_run(answered, queue_s, run.input_s, run.run_s, run.output_s)
        record = BatchRecord(len(run.jobs), rows, run.run_s, tuple(run.queue_s), bool(failed))
        try:
            self._observer.on_batch(run.served, record)
        except Exception:
            # What is told of a run must not cost the answers of it.
            _log.exception("a run could not be recorded")

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._job_count -= 1
        job.lease.release()
        try:
            job.on_done(outcome)
        except Exception:
            # One request's answer must not cost its neighbours theirs.
            _log.exception("a request's outcome could not be handed over")

    def _drop_lane_if_idle(self, served: ServedVersion) -> None:
        lane = self._lanes.get(served)
        if lane is not None and not lane.is_running and lane.batcher.entry_count == 0:
            del self._lanes[served]


def _batcher_for(served: ServedVersion) -> Batcher[Job]:
    config = served.config

    def choose_rows(job: Job, rows: int) -> int:
        size = row_elements(job.inputs, job.example_count)
        return served.costs.batch_rows(rows, size, config.max_batch_size, config.batch_size_buckets)

    return Batcher(
        max_batch_size=config.max_batch_size,
        max_queue_delay_s=config.max_queue_delay_ms / 1e3,
        max_queued_examples=config.max_queued_examples,
        choose_rows=choose_rows,
    )


def _least_run_s(job: Job) -> float:
    """What a run of this job alone should take; 0 where that is not known."""
    expected_s = job.lease.served.costs.expected_s(job.example_count, row_elements(job.inputs, job.example_count))
    return 0.0 if expected_s == float("inf") else expected_s


def _is_carried_out(run: _Run) -> bool:
    """Runs a batch once; False where culprits are to be found in it, which takes many runs. Never raises."""
    try:
        run.answers = list(_run_together(run, run.jobs))
    except Exception as error:
        if isinstance(error, OperatorError) and len(run.jobs) > 1:
            return False
        run.answers = [error] * len(run.jobs)
    return True


def _carry_out(run: _Run) -> None:
    """Runs a batch; where an operator refuses it, halves it until each culprit stands alone. Never raises."""
    try:
        run.answers = _answer(run, run.jobs)
    except Exception as error:
        run.answers = [error] * len(run.jobs)


def _answer(run: _Run, jobs: list[Job]) -> list[dict[str, Tensor] | Exception]:
    try:
        return list(_run_together(run, jobs))
    except OperatorError as error:
        if len(jobs) == 1:
            return [error]
    middle = len(jobs) // 2
    return _answer(run, jobs[:middle]) + _answer(run, jobs[middle:])


def _run_together(run: _Run, jobs: list[Job]) -> list[dict[str, Tensor]]:
    begin_s = time.perf_counter()
    row_counts = [job.example_count for job in jobs]
    rows = sum(row_counts)
    padded = bucket_size(rows, run.served.config.batch_size_buckets) - rows if rows else 0
    inputs = join([job.inputs for job in jobs], padded)
    joined_s = time.perf_counter()
    outputs = run.served.session.run(inputs, jobs[0].output_names)
    ran_s = time.perf_counter()
    if len(jobs) > 1 or padded:
        _check_rows(outputs, rows + padded)
    parts = split(outputs, row_counts) if len(jobs) > 1 or padded else [outputs]
    run.input_s += joined_s - begin_s
    run.run_s += ran_s - joined_s
    run.output_s += time.perf_counter() - ran_s
    return parts


def _check_rows(outputs: dict[str, Tensor], rows: int) -> None:
    """A batch axis that model.toml claims and the model does not have: such requests are run alone."""
    for name, tensor in outputs.items():
        if tensor.array.shape[:1] != (rows,):
            raise OperatorError(f"output '{name}': expected {rows} rows, got shape {tensor.array.shape}")


def _run_error(served: ServedVersion, error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, OperatorError):
        text = f"model '{served.model}' version {served.version}: {error}"
        return ServiceError(Reason.OPERATOR_FAILED, text, model=served.model)
    incident = uuid.uuid4().hex[:12]
    _log.error("incident %s: a run of %s version %d failed", incident, served.model, served.version, exc_info=error)
    return ServiceError(Reason.INTERNAL, f"internal error, incident {incident}", incident=incident)


def _draining() -> ServiceError:
    return ServiceError(Reason.DRAINING, "the server is shutting down; try another or later")


def _deadline_passed(waited_s: float) -> ServiceError:
    return ServiceError(Reason.DEADLINE_PASSED, f"the deadline passed after {waited_s * 1e3:.0f} ms in the queue")


def _deadline_too_near(left_s: float, expected_s: float) -> ServiceError:
    text = f"the deadline is in {left_s * 1e3:.1f} ms, and a run takes about {expected_s * 1e3:.1f} ms: not begun"
    return ServiceError(Reason.DEADLINE_PASSED, text)
