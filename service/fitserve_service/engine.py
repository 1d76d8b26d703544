"""Runs requests: queues them by version, joins what has arrived, and answers each exactly once.

The engine lives on the loop thread. A run that is known to be short happens there (handing it over would cost more than
it takes); a long one goes to a runner thread, so that the loop never stalls. On the CPU the runtime has as many long
runs of a version at a time as its threads have cores, on a GPU one: what arrives meanwhile forms the next batch, which
on a GPU is assembled already.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from fitserve_service.batcher import Priority, Room
from fitserve_service.batching.spot_checks import SpotChecks
from fitserve_service.calls import Loop
from fitserve_service.control_groups import available_cores
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.inline_guard import InlineGuard
from fitserve_service.job_errors import cancelled, deadline_passed, deadline_too_near, draining, run_error
from fitserve_service.lanes import Lane, new_lane, rows_past_queue
from fitserve_service.runs import BatchRecord, Completed, Job, Kind, Outcome, Run, Timing, carry_out
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import OperatorError, RunSwitch
from fitserve_service.signature import Tensor

_LEAST_RETRY_S: Final = 0.02
"""A caller whom a full queue refused is told to stay away for this long at least."""

_RUNNER_NICENESS: Final = 5
"""Of runner threads (nice(2)); on Linux a thread has its own."""

_WATCH_S: Final = 0.1
"""How often runs on runner threads are held against the time that their callers have."""

__all__ = ["BatchRecord", "Completed", "Engine", "EngineObserver", "Job", "Outcome", "Timing"]

_log = logging.getLogger(__name__)


class EngineObserver(Protocol):
    """Is told of every run, on the loop thread."""

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:
        """Takes the record of a run."""
        ...


class Engine:
    """Runs jobs. Everything but `Loop.post` happens on the loop thread.

    Args:
        loop: The transport's loop.
        observer: Told of every run.
        clock: Monotonic seconds.
        runner_count: Threads for long runs; 0: as many as there are cores, and two at least.
        runners: What carries out long runs instead of threads of its own.
        max_queued_bytes: Bytes of inputs that may wait for all versions together.
        on_coupled: Takes a version whose rows a spot check found to mix, and what it found.
    """

    def __init__(
        self,
        loop: Loop,
        observer: EngineObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
        runner_count: int = 0,
        runners: Executor | None = None,
        max_queued_bytes: int = 1 << 30,
        on_coupled: Callable[[ServedVersion, str], None] = lambda _, __: None,
    ) -> None:
        self._loop = loop
        self._observer, self._on_coupled = observer, on_coupled
        self._clock = clock
        thread_count = runner_count or max(available_cores(), 2)
        self._runners = runners or ThreadPoolExecutor(thread_count, "runner", initializer=_give_way)
        self._guard = InlineGuard()
        self._spot_checks = SpotChecks(self._runners, loop.post, self._spot_checked)
        self._lanes: dict[ServedVersion, Lane] = {}
        self._room = Room(max_queued_bytes)
        self._gatherings: list[Callable[[], None]] = []
        self._is_scheduled = False
        self.is_draining = False  # new jobs are refused
        self._job_count = self.submitted_count = 0  # to be answered; since the start
        self._long_runs: set[Run] = set()
        self._rested: WeakKeyDictionary[ServedVersion, Lane] = WeakKeyDictionary()
        """Every lane there was, by its version: one that has nothing to do keeps nothing loaded."""

    def prepare(self) -> None:
        """Makes what the first run on the loop thread would have to make."""
        self._guard.prepare()

    def submit(self, job: Job) -> None:
        """Queues a job. Never raises: a job that cannot be queued gets its error through `on_done`."""
        self._job_count += 1
        self.submitted_count += 1
        now_s = self._clock()
        if self.is_draining:
            self._finish(job, draining())
        elif job.deadline_s is not None and job.deadline_s <= now_s + job.least_run_s():
            self._miss(job, 0.0, now_s)
        elif not self._queue(job, now_s):
            self._finish(job, self._queue_full(job, now_s))
        elif not self._is_scheduled:
            self._schedule()

    def cancel(self, job: Job) -> None:
        """Takes a queued job back: its caller has gone. One that runs is ended once nobody waits for its batch."""
        job.is_abandoned = True
        if job.is_queued:
            served = job.lease.served
            lane = self._lanes[served]
            lane.batcher.remove(job)
            self._rest_if_idle(served, lane)
            self._finish(job, cancelled())

    def gather(self, callback: Callable[[], None]) -> None:
        """Runs a callback before what waits is looked at next: once the arrivals at hand are all there."""
        self._gatherings.append(callback)
        if not self._is_scheduled:
            self._schedule()

    def run_at_once(self, job: Job, queue_s: list[float]) -> Run | None:
        """Runs a job that stands for many requests here and now, past the queue; `count` counts it.

        Args:
            job: No longer than `rows_at_once` says; its `on_done` is not called, and its lease stays the caller's.
            queue_s: How long each of its requests has waited.

        Returns:
            The run, with one answer; None where it is to be run elsewhere.
        """
        run = Run(job.lease.served, [job], queue_s, job.example_count)
        return run if self._guard.is_carried_out(run) else None

    def rows_at_once(self, served: ServedVersion, kind: Kind, rows: int) -> int:
        """Tells how many of the rows that are there to run at once past the queue; 0: they have to queue."""
        if served in self._lanes or not served.signature.has_batch_axis:
            return 0
        return rows_past_queue(served, kind, rows)

    def stop_joining(self, served: ServedVersion, problem: str) -> None:
        """Has the requests of a version run alone from now on, those that wait too.

        Args:
            served: The version.
            problem: Why, for people.
        """
        if not served.signature.has_batch_axis:
            return
        served.stop_joining(problem)
        if lane := self._rested.get(served):
            lane.batcher.stop_joining()
        cure = "requests run alone from now on; spot_check_share = 0 in model.toml accepts such differences"
        _log.error("%s version %d: %s; %s", served.model, served.version, served.joining, cure)

    def count(self, run: Run) -> None:
        """Counts a run of `run_at_once` whose requests are about to be answered."""
        self.submitted_count += len(run.queue_s)
        self._record(run)

    def dispatch(self) -> None:
        """Runs what has arrived: one batch of each version, then lets new arrivals in before the next."""
        gatherings, self._gatherings = self._gatherings, []
        for callback in gatherings:
            try:
                callback()
            except Exception:
                _log.exception("what was gathered could not be run")
        self._is_scheduled = False
        for served, lane in list(self._lanes.items()):
            if not lane.is_full:
                self._dispatch_lane(served, lane)

    def queued_examples(self) -> dict[ServedVersion, int]:
        """Gives how many examples wait, by version."""
        return {served: lane.batcher.queued_examples for served, lane in self._lanes.items()}

    def begin_drain(self) -> None:
        """Refuses new jobs from now on; those queued are still run."""
        self.is_draining = True

    def is_idle(self) -> bool:
        """Tells whether every job has been answered."""
        return self._job_count == 0 and not self._gatherings

    def close(self) -> None:
        """Refuses all that is queued, ends runs that nobody waits for, and the runner threads once the others end."""
        self.begin_drain()
        for served, lane in list(self._lanes.items()):
            for job in lane.batcher.clear():
                self._finish(job, draining())
            self._rest_if_idle(served, lane)
        self._end_unwanted()
        self._spot_checks.close()
        self._guard.close()
        self._runners.shutdown(wait=False, cancel_futures=True)

    def _queue(self, job: Job, now_s: float) -> bool:
        served = job.lease.served
        lane = self._lanes.get(served) or self._wake(served)
        if served.config.max_queue_ms and job.priority is Priority.PREDICT:
            job.run_s = job.example_count * served.costs.row_s(job.row_elements)
        if job.deadline_s is not None:
            job.latest_s, job.end_s = job.deadline_s - job.least_run_s(), job.deadline_s
        return lane.batcher.add(job, now_s)

    def _queue_full(self, job: Job, now_s: float) -> ServiceError:
        served = job.lease.served
        lane = self._lanes[served]
        why, wait_s = lane.batcher.why_refused(job, now_s), lane.batcher.wait_s
        # Where others' queues took the room, it may be a lane that was woken for this job alone.
        self._rest_if_idle(served, lane)
        error = ServiceError(Reason.QUEUE_FULL, f"model '{served.model}': {why}; try later", model=served.model)
        error.retry_after_s = max(wait_s, _LEAST_RETRY_S)
        return error

    def _wake(self, served: ServedVersion) -> Lane:
        lane = self._rested.get(served)
        if lane is None:
            lane = self._rested[served] = new_lane(served, self._room)
        self._lanes[served] = lane
        return lane

    def _rest_if_idle(self, served: ServedVersion, lane: Lane) -> None:
        if not lane.running_count and lane.batcher.entry_count == 0:
            self._lanes.pop(served, None)

    def _miss(self, job: Job, waited_s: float, now_s: float) -> None:
        """Refuses a job that cannot be answered before its deadline, before it costs anything."""
        left_s = (job.deadline_s or 0.0) - now_s
        if left_s <= 0:
            self._finish(job, deadline_passed(waited_s))
            return
        expected_s = job.least_run_s()
        job.lease.served.costs.doubt(job.example_count, job.row_elements)
        self._finish(job, deadline_too_near(left_s, expected_s))

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_soon(self.dispatch)

    def _dispatch_lane(self, served: ServedVersion, lane: Lane) -> None:
        now_s = self._clock()
        taken = lane.take(now_s)
        for job in taken.late:
            self._miss(job, now_s - job.arrived_s, now_s)
        if jobs := taken.batch:
            rows = sum([job.example_count for job in jobs])
            self._start(lane, Run(served, jobs, [now_s - job.arrived_s for job in jobs], rows))
        elif (due_s := lane.batcher.due_s()) is not None:
            if due_s != lane.timer_s:
                lane.timer_s = due_s
                self._loop.call_later(max(due_s - now_s, 0.0), partial(self._on_timer, served, lane, due_s))
        else:
            self._rest_if_idle(served, lane)

    def _on_timer(self, served: ServedVersion, lane: Lane, due_s: float) -> None:
        if due_s != lane.timer_s:
            return
        # A loop's timer may go off a moment early; then the lane must be free to set it again.
        lane.timer_s = 0.0
        if served in self._lanes and not lane.is_full:
            self._dispatch_lane(served, lane)

    def _start(self, lane: Lane, run: Run) -> None:
        lane.running_count += 1
        floor_s = run.served.costs.floor_s(run.example_count, run.row_elements)
        # What loops may run for ever by a request's values, whatever it took before: never on the loop thread.
        # A second run waits for the GPU: on the loop thread everybody would wait with it.
        is_alone = lane.running_count == 1 or not lane.is_on_gpu
        is_short = floor_s <= lane.inline_limit_s and is_alone and not run.served.session.has_loops
        if is_short and self._guard.is_carried_out(run):
            lane.batcher.overlap = 1
            self._complete(lane, run)
        else:
            self._hand_over(lane, run)

    def _hand_over(self, lane: Lane, run: Run) -> None:
        self._watch(run)
        lane.ends_s[run] = self._clock() + run.served.costs.typical_s(run.example_count, run.row_elements)
        lane.expect()
        run.slot = lane.slot
        future = self._runners.submit(carry_out, run)
        future.add_done_callback(lambda done: self._loop.post(partial(self._came_back, lane, run, done)))
        if lane.batcher.entry_count and not lane.is_full and not self._is_scheduled:
            self._schedule()

    def _watch(self, run: Run) -> None:
        run.switch = RunSwitch()
        if not self._long_runs:
            self._loop.call_later(_WATCH_S, self._end_unwanted)
        self._long_runs.add(run)

    def _end_unwanted(self) -> None:
        """Ends runs for which nobody waits any more: else one that never ends would hold its thread for good."""
        now_s = self._clock()
        for run in self._long_runs:
            if not run.is_wanted(now_s):
                run.turn_off()
        if self._long_runs:
            self._loop.call_later(_WATCH_S, self._end_unwanted)

    def _came_back(self, lane: Lane, run: Run, future: Future[None]) -> None:
        self._long_runs.discard(run)
        del lane.ends_s[run]
        lane.expect()
        if future.cancelled():
            run.answers = [draining()] * len(run.jobs)
        elif run.switch is not None and run.switch.is_off:
            run.answers = [self._ended(job, answer) for job, answer in zip(run.jobs, run.answers, strict=True)]
        self._complete(lane, run)

    def _ended(self, job: Job, answer: dict[str, Tensor] | Exception) -> dict[str, Tensor] | Exception:
        if not isinstance(answer, OperatorError):
            return answer
        is_late = job.deadline_s is not None and job.deadline_s <= self._clock()
        return ServiceError(Reason.DEADLINE_PASSED, "the deadline passed during the run") if is_late else cancelled()

    def _complete(self, lane: Lane, run: Run) -> None:
        lane.running_count -= 1
        took_s = run.input_s + run.run_s + run.output_s
        # Before the answers: whoever has one finds its run counted.
        self._record(run)
        if run.row_problem:
            self._found_coupled(
                run.served, f"its outputs do not have a row for each row of the inputs: {run.row_problem}"
            )
        if lane.pacing is not None:
            for waited_s in run.queue_s:
                lane.pacing.observe(waited_s + took_s)
            lane.batcher.pace(lane.pacing.delay_s)
        for job, waited_s, answer in zip(run.jobs, run.queue_s, run.answers, strict=True):
            if isinstance(answer, Exception):
                self._finish(job, run_error(run.served, answer))
            else:
                self._finish(job, Completed(answer, Timing(waited_s, took_s)))
        if lane.batcher.entry_count == 0:
            self._rest_if_idle(run.served, lane)
        elif not self._is_scheduled:
            self._schedule()

    def _spot_checked(self, served: ServedVersion, difference: str) -> None:
        served.spot_check_count += 1
        if difference:
            self._found_coupled(served, f"a spot check found a row that depends on its neighbours: {difference}")

    def _found_coupled(self, served: ServedVersion, problem: str) -> None:
        served.spot_mismatch_count += 1
        self.stop_joining(served, problem)
        self._on_coupled(served, problem)

    def _record(self, run: Run) -> None:
        statistics, rows, answered, queue_s = run.served.statistics, run.example_count, run.example_count, run.queue_s
        failed = [index for index, answer in enumerate(run.answers) if isinstance(answer, Exception)]
        if failed:
            answered -= sum(run.jobs[index].example_count for index in failed)
            queue_s = [waited_s for index, waited_s in enumerate(run.queue_s) if index not in failed]
            for index in failed:
                statistics.add_failure(run.queue_s[index] + run.run_s)
        else:
            run.served.costs.record(rows, run.row_elements, run.run_s)
            self._spot_checks.saw(run)
        if queue_s:
            statistics.add_run(answered, queue_s, run.input_s, run.run_s, run.output_s)
        record = BatchRecord(len(run.queue_s), rows, run.run_s, run.queue_s, bool(failed))
        try:
            self._observer.on_batch(run.served, record)
        except Exception:
            # What is told of a run must not cost the answers of it.
            _log.exception("a run could not be recorded")

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._job_count -= 1
        job.lease.release()
        try:
            job.on_done(job, outcome)
        except Exception:
            # One request's answer must not cost its neighbours theirs.
            _log.exception("a request's outcome could not be handed over")


def _give_way() -> None:
    """Has this thread leave the processor to those that answer callers: a refusal must not wait for a run's end."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _RUNNER_NICENESS)
