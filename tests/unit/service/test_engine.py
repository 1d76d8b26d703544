"""The engine on a loop of virtual time, with real sessions on tiny models: every job is answered exactly once."""

from __future__ import annotations

import heapq
import queue
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fitserve_contract.tensor_bytes import Array
from fitserve_service.batcher import AGING_S, Priority
from fitserve_service.costs import CostTable
from fitserve_service.engine import BatchRecord, Completed, Engine, Job, Outcome
from fitserve_service.errors import Code, Reason, ServiceError
from fitserve_service.model_config import ModelConfig
from fitserve_service.onnx_file import read_facts
from fitserve_service.pacing import WINDOW_COUNT
from fitserve_service.registry import Registry
from fitserve_service.run_errors import DeviceMemoryError
from fitserve_service.runs import Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import CUDA_PROVIDER, Session, SessionOptions
from fitserve_service.signature import Signature, Tensor
from fitserve_service.version_policy import State

BAD = 99
"""An index that `builders.gather` refuses."""


class VirtualLoop:
    """A loop whose turns and whose clock the test makes; `post` is the one door for other threads."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._soon: deque[Callable[[], None]] = deque()
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def post(self, callback: Callable[[], None]) -> None:
        self._posted.put(callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now_s + delay_s, next(self._numbers), callback))

    def turn(self) -> None:
        """Runs what was asked for before this turn; what it asks for comes in the next."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def advance(self, step_s: float) -> None:
        """Lets time pass, and timers go off at their time."""
        end_s = self.now_s + step_s
        while self._timers and self._timers[0][0] <= end_s:
            self.now_s, _, callback = heapq.heappop(self._timers)
            callback()
        self.now_s = end_s

    def fire_early(self, by_s: float) -> None:
        """Lets the next timer go off before its time, as loops with a coarse clock do."""
        due_s, _, callback = heapq.heappop(self._timers)
        self.now_s = due_s - by_s
        callback()

    def take_posted(self, *, wait: bool) -> None:
        self._posted.get(timeout=20 if wait else None, block=wait)()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Turns, lets time pass and takes what other threads post, until all is done."""
        while not is_done():
            if self._soon:
                self.turn()
            elif not self._posted.empty():
                self.take_posted(wait=False)
            elif self._timers:
                self.advance(max(self._timers[0][0] - self.now_s, 0.0))
            else:
                self.take_posted(wait=True)


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
        served = ServedVersion(name, 1, session, signature, settings, "", None, b"", False, costs=costs or Free())
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
        job = Job(lease, prepared, deadline_s, priority, lambda outcome: self._done(number, outcome))
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


def test_what_arrived_together_runs_together_and_each_gets_its_own_rows() -> None:
    with world() as it:
        it.serve("m", builders.scaled(2.0))
        numbers = [it.submit("m", rows(*range(n, n + size))) for n, size in enumerate((1, 3, 2))]
        it.settle()

        assert it.observer.sizes == [3]
        for number, size in zip(numbers, (1, 3, 2), strict=True):
            assert it.answer(number).tobytes() == (2 * rows(*range(number, number + size))).tobytes()
        assert it.is_free()


def test_requests_of_different_shapes_do_not_run_together() -> None:
    with world() as it:
        it.serve("m", builders.identity(shape=("B", "S")))
        short, long = it.submit("m", np.ones((1, 2), np.float32)), it.submit("m", np.ones((1, 3), np.float32))
        also_short = it.submit("m", np.ones((2, 2), np.float32))
        it.settle()

        assert sorted(it.observer.sizes) == [1, 2]
        assert [it.answer(number).shape for number in (short, long, also_short)] == [(1, 2), (1, 3), (2, 2)]


def test_without_a_batch_axis_every_request_runs_alone() -> None:
    with world() as it:
        it.serve("m", builders.identity(shape=(2, 3)), max_batch_size=0)
        numbers = [it.submit("m", np.full((2, 3), value, np.float32)) for value in range(4)]
        it.settle()

        assert it.observer.sizes == [1, 1, 1, 1]
        assert [it.answer(number)[0, 0] for number in numbers] == [0, 1, 2, 3]


@pytest.mark.parametrize("bad_count", range(1, 9))
def test_culprits_are_isolated_and_the_innocent_get_what_they_would_have_got_alone(bad_count: int) -> None:
    random = np.random.default_rng(bad_count)
    with world() as it:
        it.serve("m", builders.gather(classes=5))
        is_bad = random.permutation([True] * bad_count + [False] * (16 - bad_count))
        sent = [indices(int(random.integers(5)), BAD if bad else int(random.integers(5))) for bad in is_bad]
        numbers = [it.submit("m", array) for array in sent]
        it.settle()

        assert it.observer.sizes == [16]
        for number, array, bad in zip(numbers, sent, is_bad, strict=True):
            if bad:
                assert it.error(number).reason is Reason.OPERATOR_FAILED
                assert "model 'm' version 1: operator Gather" in it.error(number).message
                continue
            alone = it.submit("m", array)
            it.settle()
            assert it.answer(number).tobytes() == it.answer(alone).tobytes()
        assert it.is_free()


def test_looking_for_culprits_does_not_stall_the_loop() -> None:
    with world() as it:
        it.serve("m", builders.gather())
        it.serve("other", builders.scaled())
        bad = [it.submit("m", indices(BAD)) for _ in range(8)]
        other = it.submit("other", rows(1))
        it.loop.turn()

        assert it.answer(other).tolist() == [[2, -2]]
        assert all(it.outcomes[number] == [] for number in bad)
        it.settle()
        assert {it.error(number).reason for number in bad} == {Reason.OPERATOR_FAILED}


def test_a_batch_in_which_some_failed_counts_both_kinds() -> None:
    with world() as it:
        served = it.serve("m", builders.gather(), costs=Free())
        for array in (indices(1), indices(BAD), indices(2, 3)):
            it.submit("m", array)
        it.settle()

        statistics = served.statistics
        assert (statistics.success.count, statistics.fail.count, statistics.inference_count) == (2, 1, 3)
        assert it.observer.batches[0][1].has_failed
        assert served.costs._run_s == {}


def test_a_deadline_that_passed_in_the_queue_never_reaches_the_model() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_queue_delay_ms=50)
        late = it.submit("m", rows(1), deadline_s=it.loop.now_s + 0.02)
        in_time = it.submit("m", rows(2), deadline_s=it.loop.now_s + 9)
        gone = it.submit("m", rows(3), deadline_s=it.loop.now_s)
        it.settle()

        assert it.error(late).reason is it.error(gone).reason is Reason.DEADLINE_PASSED
        assert it.error(late).message == "the deadline passed after 50 ms in the queue"
        assert it.answer(in_time).tolist() == [[4, -4]]
        assert it.observer.sizes == [1]


def test_a_full_queue_refuses_at_once_and_takes_again_when_it_has_run() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_queued_examples=3)
        taken = it.submit("m", rows(1, 2))
        refused = it.submit("m", rows(3, 4))

        assert it.error(refused).reason is Reason.QUEUE_FULL
        assert it.error(refused).message == "model 'm': its queue holds 3 examples; try later"
        assert list(it.engine.queued_examples().values()) == [2]
        it.settle()
        again = it.submit("m", rows(3, 4))
        it.settle()
        assert len(it.answer(taken)) == len(it.answer(again)) == 2
        assert it.engine.queued_examples() == {}
        assert it.is_free()


def test_a_request_over_the_batch_limit_is_refused() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_batch_size=2)
        number = it.submit("m", rows(1, 2, 3))

        assert it.error(number).reason is Reason.BATCH_TOO_LARGE
        assert it.error(number).message == "expected at most 2 examples in a request to model 'm', got 3"


def test_a_request_without_rows_is_answered_without_rows() -> None:
    with world() as it:
        it.serve("m", builders.scaled())
        numbers = [it.submit("m", rows()[:0].reshape(0, 2)), it.submit("m", rows(1))]
        it.settle()

        assert it.answer(numbers[0]).shape == (0, 2)
        assert sorted(it.observer.sizes) == [1, 1]


def test_a_cancelled_job_is_never_run_and_its_neighbours_are() -> None:
    with world() as it:
        it.serve("m", builders.scaled())
        numbers = [it.submit("m", rows(value)) for value in range(3)]
        it.engine.cancel(it.jobs[1])
        it.engine.cancel(it.jobs[1])
        it.settle()
        it.engine.cancel(it.jobs[0])

        assert it.error(numbers[1]).reason is Reason.CALLER_CANCELLED
        assert it.answer(numbers[2]).tolist() == [[4, -4]]
        assert it.observer.sizes == [2]
        assert it.is_free()


def test_cancelling_what_was_refused_does_nothing() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_queued_examples=1)
        it.submit("m", rows(1))
        refused = it.submit("m", rows(2))
        it.settle()
        it.engine.cancel(it.jobs[refused])

        assert it.error(refused).reason is Reason.QUEUE_FULL


def test_a_drain_refuses_the_new_and_finishes_the_old() -> None:
    with world() as it:
        it.serve("m", builders.scaled())
        old = it.submit("m", rows(1))
        it.engine.begin_drain()
        new = it.submit("m", rows(2))

        assert not it.engine.is_idle()
        it.settle()
        assert it.answer(old).tolist() == [[2, -2]]
        assert it.error(new).reason is Reason.DRAINING


def test_closing_answers_what_is_queued_and_what_runs_is_answered_when_it_ends() -> None:
    with world() as it:
        it.serve("slow", builders.slow(rounds=50), CostTable())
        it.serve("m", builders.scaled(), max_queue_delay_ms=1000)
        running = it.submit("slow", np.ones((1, 512), np.float32))
        it.loop.turn()
        behind, queued = it.submit("slow", np.ones((1, 512), np.float32)), it.submit("m", rows(1))
        it.engine.close()

        assert it.error(behind).reason is it.error(queued).reason is Reason.DRAINING
        it.loop.run_until(it.engine.is_idle)
        assert it.answer(running).shape == (1, 512)
        assert it.is_free()


def test_a_run_that_close_kept_from_starting_is_answered() -> None:
    with world() as it:
        for name in ("a", "b", "c"):
            it.serve(name, builders.slow(rounds=100), CostTable())
        numbers = [it.submit(name, np.ones((64, 512), np.float32)) for name in ("a", "b", "c")]
        it.loop.turn()
        it.engine.close()
        it.settle()

        reasons = [outcome.reason for n in numbers if isinstance(outcome := it.outcome(n), ServiceError)]
        assert set(reasons) <= {Reason.DRAINING}
        assert it.is_free()


def test_runs_are_padded_to_buckets() -> None:
    model = builders.model(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
            helper.make_node("Sub", ["sum", "x"], ["y"]),
        ],
        [builders.value("x")],
        [builders.value("y")],
        {"axes": np.array([0], np.int64)},
    )
    with world() as it:
        it.serve("m", model, batch_size_buckets=(4, 8), max_batch_size=8)
        one = it.submit("m", rows(1))
        it.settle()
        five = it.submit("m", rows(1, 1, 1, 1, 1))
        it.settle()

        assert it.answer(one).tolist() == [[3, -3]]
        assert it.answer(five).tolist() == [[7, -7]] * 5
        assert [batch.example_count for _, batch in it.observer.batches] == [1, 5]


def test_predict_goes_before_evaluate_until_evaluate_has_waited_long_enough() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_batch_size=1)
        evaluate = it.submit("m", rows(0), priority=Priority.EVALUATE)
        it.loop.now_s += 0.01
        predicts = [it.submit("m", rows(value)) for value in range(1, 4)]
        it.loop.turn()
        it.loop.now_s += AGING_S
        it.settle()

        assert it.order == [predicts[0], evaluate, *predicts[1:]]


def test_a_long_run_leaves_the_loop_free_and_what_arrives_meanwhile_forms_the_next_batch() -> None:
    with world() as it:
        it.serve("slow", builders.slow(), CostTable())
        it.serve("fast", builders.scaled())
        slow = it.submit("slow", np.ones((1, 512), np.float32))
        fast = it.submit("fast", rows(1))
        it.loop.turn()
        later = [it.submit("slow", np.ones((1, 512), np.float32)) for _ in range(3)]
        it.loop.turn()

        assert it.answer(fast).tolist() == [[2, -2]]
        assert it.outcomes[slow] == []
        assert list(it.engine.queued_examples().values()) == [3]
        it.settle()
        assert it.answer(slow).tolist() == [[1.0] * 512]
        assert all(it.answer(number).tolist() == [[1.0] * 512] for number in later)
        assert [batch.request_count for name, batch in it.observer.batches if name == "slow"] == [1, 3]
        assert it.is_free()


def test_a_run_moves_to_the_loop_once_it_is_known_to_be_short() -> None:
    with world() as it:
        served = it.serve("m", builders.scaled(), CostTable())
        served.costs.record(1, 2, 1e-6)
        number = it.submit("m", rows(1))
        it.loop.turn()

        assert it.answer(number).tolist() == [[2, -2]]


def test_a_run_that_is_known_to_be_long_leaves_the_loop() -> None:
    with world() as it:
        served = it.serve("m", builders.scaled(), CostTable())
        served.costs.record(1, 2, 0.004)
        number = it.submit("m", rows(1))
        it.loop.turn()

        assert it.outcomes[number] == []
        it.settle()
        assert it.answer(number).tolist() == [[2, -2]]


def test_a_timer_that_goes_off_early_is_set_again() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_queue_delay_ms=10)
        number = it.submit("m", rows(1))
        it.loop.turn()
        it.loop.fire_early(by_s=1e-4)
        assert it.outcomes[number] == []
        it.loop.advance(1.0)

        assert it.answer(number).tolist() == [[2, -2]]


def test_a_delay_joins_what_arrives_within_it() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_queue_delay_ms=10)
        for value in range(3):
            it.submit("m", rows(value))
            it.loop.turn()
            it.loop.advance(0.004)
        it.settle()

        assert it.observer.sizes == [3]


def test_a_batch_axis_that_model_toml_claims_and_the_model_lacks_is_made_good_by_running_alone() -> None:
    model = builders.model(
        [helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=1)],
        [builders.value("x")],
        [builders.value("y", (1, 2))],
        {"axes": np.array([0], np.int64)},
    )
    with world() as it:
        it.serve("m", model)
        numbers = [it.submit("m", rows(value)) for value in (1, 2, 3)]
        it.settle()

        assert [it.answer(number)[0, 0] for number in numbers] == [1, 2, 3]


def test_a_fault_of_ours_becomes_an_incident_that_only_the_log_explains(caplog: pytest.LogCaptureFixture) -> None:
    with world() as it:
        it.serve("m", builders.scaled())
        number = it.submit("m", np.zeros((1, 2), complex))
        it.settle()

        error = it.error(number)
        assert error.reason is Reason.INTERNAL
        assert error.message == f"internal error, incident {error.metadata['incident']}"
        assert f"incident {error.metadata['incident']}: a run of m version 1 failed" in caplog.text


def test_an_answer_that_cannot_be_handed_over_and_an_observer_that_fails_cost_nobody_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world() as it:
        it.serve("m", builders.scaled())
        numbers = [it.submit("m", rows(value)) for value in range(3)]
        monkeypatch.setattr(it.jobs[1], "on_done", lambda _: 1 // 0)
        monkeypatch.setattr(it.observer, "on_batch", lambda *_: 1 // 0)
        it.settle()

        assert it.answer(numbers[0]).tolist() == [[0, 0]]
        assert it.answer(numbers[2]).tolist() == [[4, -4]]
        assert "a request's outcome could not be handed over" in caplog.text
        assert "a run could not be recorded" in caplog.text
        assert it.is_free()


def test_an_answer_may_submit_the_next_job() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_batch_size=1)
        first = it.submit("m", rows(1))
        answered = it.jobs[first].on_done

        def submit_next(outcome: Outcome) -> None:
            answered(outcome)
            it.submit("m", rows(2))

        it.jobs[first].on_done = submit_next
        it.settle()

        assert it.order == [0, 1]


def wants(kind: str) -> st.SearchStrategy[tuple[str, int, bool, float | None, Priority]]:
    return st.tuples(
        st.just(kind),
        st.integers(0, 4),
        st.booleans(),
        st.sampled_from([None, 0.0, 0.003, 0.2]),
        st.sampled_from(Priority),
    )


SCHEDULES = st.lists(
    st.one_of(
        wants("inline"),
        wants("runner"),
        wants("delayed"),
        st.tuples(st.just("cancel"), st.integers(0, 200)),
        st.tuples(st.just("turn")),
        st.tuples(st.just("posted")),
        st.tuples(st.just("advance"), st.sampled_from([0.001, 0.004, 0.3])),
        st.tuples(st.just("drain")),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(SCHEDULES)
def test_whatever_happens_each_job_has_exactly_one_outcome_and_every_lease_comes_back(
    schedule: list[tuple[object, ...]],
) -> None:
    with world() as it:
        it.serve("inline", builders.gather(), max_batch_size=6, max_queued_examples=12)
        it.serve("runner", builders.gather(), CostTable(), max_batch_size=6, max_queued_examples=12)
        it.serve("delayed", builders.gather(), max_batch_size=6, max_queued_examples=12, max_queue_delay_ms=5)
        sent: dict[int, tuple[Array, bool, float | None, float]] = {}
        for step in schedule:
            _carry_out(it, step, sent)
        it.settle()

        assert sorted(it.order) == list(range(len(it.jobs)))
        for number, (array, is_bad, deadline_s, begin_s) in sent.items():
            _check(it.outcome(number), array, is_bad, deadline_s, begin_s)
        assert it.engine.queued_examples() == {}
        assert it.is_free()


def _carry_out(it: World, step: tuple[object, ...], sent: dict[int, tuple[Array, bool, float | None, float]]) -> None:
    match step:
        case ("cancel", int(index)):
            if it.jobs:
                it.engine.cancel(it.jobs[index % len(it.jobs)])
        case ("turn",):
            it.loop.turn()
        case ("posted",):
            try:
                it.loop.take_posted(wait=False)
            except queue.Empty:
                return
        case ("advance", float(step_s)):
            it.loop.advance(step_s)
        case ("drain",):
            it.engine.begin_drain()
        case (str(name), int(size), bool(is_bad), patience_s, Priority() as priority):
            array = np.arange(size, dtype=np.int64)
            if is_bad:
                array = np.append(array, BAD)
            assert patience_s is None or isinstance(patience_s, float)
            deadline_s = None if patience_s is None else it.loop.now_s + patience_s
            begin_s = it.loop.now_s
            number = it.submit(name, array, deadline_s=deadline_s, priority=priority)
            sent[number] = (array, is_bad, deadline_s, begin_s)


def _check(outcome: Outcome, array: Array, is_bad: bool, deadline_s: float | None, begin_s: float) -> None:
    if isinstance(outcome, Completed):
        table = np.arange(10, dtype=np.float32).reshape(5, 2)
        assert not is_bad
        assert outcome.outputs["y"].array.tobytes() == table[array].tobytes()
        assert deadline_s is None or begin_s + outcome.timing.queue_s < deadline_s
    elif outcome.reason is Reason.DEADLINE_PASSED:
        assert deadline_s is not None
    elif outcome.reason is Reason.OPERATOR_FAILED:
        assert is_bad
    else:
        assert outcome.reason in (Reason.CALLER_CANCELLED, Reason.QUEUE_FULL, Reason.DRAINING)


def test_words_are_joined_too() -> None:
    model = builders.model(
        [helper.make_node("StringConcat", ["x", "tail"], ["y"])],
        [builders.value("x", ("B",), TensorProto.STRING)],
        [builders.value("y", ("B",), TensorProto.STRING)],
        {"tail": np.array(["!"], object)},
    )
    with world() as it:
        it.serve("m", model)
        good = it.submit("m", np.array([b"a", "é".encode()], object))
        bad = it.submit("m", np.array([b"a", b"\xff"], object))
        it.settle()

        assert it.answer(good).tolist() == [b"a!", "é!".encode()]
        assert it.error(bad).message.endswith("input 'x': expected UTF-8 text, got other bytes in element 1")


class Measured(Free):
    """Short runs, so that all happen on the loop, but of sizes that were measured; what is run changes nothing."""

    def __init__(self, run_s: dict[int, float]) -> None:
        super().__init__()
        for size, cost_s in run_s.items():
            CostTable.record(self, size, 2, cost_s)

    def record(self, rows: int, row_elements: int, run_s: float) -> None:
        """Leaves the table as the test made it."""


def test_no_batch_is_made_that_takes_longer_than_splitting_it() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), Measured({1: 1.0, 4: 1.2, 5: 9.0}))
        numbers = [it.submit("m", rows(n)) for n in range(10)]
        it.settle()

        assert it.observer.sizes == [4, 4, 2]
        assert [float(it.answer(number)[0, 0]) for number in numbers] == [2.0 * n for n in range(10)]


def test_who_cannot_be_answered_in_time_is_refused_before_the_run() -> None:
    with world() as it:
        costs = CostTable()
        costs.record(1, 2, 5.0)
        it.serve("m", builders.scaled(), costs)
        near = it.submit("m", rows(1), deadline_s=it.loop.now_s + 1.0)

        assert it.error(near).reason is Reason.DEADLINE_PASSED
        assert "a run takes about 5000.0 ms: not begun" in it.error(near).message
        assert it.observer.batches == []
        assert costs.expected_s(1, 2) == pytest.approx(4.5)


def test_a_queue_that_ate_the_time_for_the_run_refuses_too() -> None:
    with world() as it:
        costs = CostTable()
        costs.record(1, 2, 5.0)
        it.serve("m", builders.scaled(), costs, max_queue_delay_ms=2000.0)
        late = it.submit("m", rows(1), deadline_s=it.loop.now_s + 6.0)
        it.loop.turn()
        it.loop.advance(2.5)

        assert it.error(late).reason is Reason.DEADLINE_PASSED
        assert it.observer.batches == []
        assert it.is_free()


def test_a_run_that_never_ends_is_ended_when_its_callers_time_is_over() -> None:
    with world() as it:
        it.serve("m", builders.endless(), CostTable())
        number = it.submit("m", rows(1), deadline_s=it.loop.now_s + 3.0)
        it.settle()

        assert it.error(number).reason is Reason.DEADLINE_PASSED
        assert "during the run" in it.error(number).message
        assert it.is_free()


def test_a_run_that_never_ends_is_ended_when_all_its_callers_are_gone() -> None:
    with world() as it:
        it.serve("m", builders.endless(), CostTable())
        numbers = [it.submit("m", rows(n)) for n in range(2)]
        it.loop.turn()
        it.engine.cancel(it.jobs[0])
        it.loop.advance(5.0)
        assert it.outcomes == {0: [], 1: []}
        it.engine.cancel(it.jobs[1])
        it.settle()

        assert [it.error(number).reason for number in numbers] == [Reason.CALLER_CANCELLED] * 2
        assert it.is_free()


def test_closing_ends_a_run_whose_callers_are_gone() -> None:
    with world() as it:
        it.serve("m", builders.endless(), CostTable())
        number = it.submit("m", rows(1))
        it.loop.turn()
        it.engine.cancel(it.jobs[0])
        it.engine.close()
        it.loop.take_posted(wait=True)

        assert it.error(number).reason is Reason.CALLER_CANCELLED


def test_a_latency_target_sets_the_delay_by_itself_and_it_outlives_an_idle_moment() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), p99_target_ms=1000.0)
        for _ in range(WINDOW_COUNT):
            it.submit("m", rows(1))
            it.settle()
        waiting = it.submit("m", rows(1))
        it.loop.turn()

        assert it.outcomes[waiting] == []
        it.loop.advance(0.021)
        assert it.answer(waiting).tolist() == [[2, -2]]


def test_a_missed_latency_target_makes_batches_smaller() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_batch_size=8, p99_target_ms=1e-6)
        for _ in range(WINDOW_COUNT):
            it.submit("m", rows(1))
        it.settle()
        it.observer.batches.clear()
        for _ in range(8):
            it.submit("m", rows(1))
        it.settle()

        assert it.observer.sizes == [6, 2]


def test_a_gpus_next_batch_is_assembled_while_the_last_one_runs() -> None:
    with world() as it:
        served = it.serve("m", builders.slow(rounds=50), CostTable())
        served.session.provider = CUDA_PROVIDER
        numbers = []
        for _ in range(3):
            numbers.append(it.submit("m", np.ones((1, 512), np.float32)))
            it.loop.turn()

        assert it.outcomes == {number: [] for number in numbers}
        assert it.engine.queued_examples() == {served: 1}
        it.settle()
        assert it.observer.sizes == [1, 1, 1]
        assert all(it.answer(number).shape == (1, 512) for number in numbers)
        assert it.is_free()


def test_a_run_that_would_wait_for_the_gpu_never_waits_on_the_loop_however_short_it_is() -> None:
    with world() as it:
        served = it.serve("m", builders.slow(rounds=50), CostTable())
        served.session.provider = CUDA_PROVIDER
        first = it.submit("m", np.ones((1, 512), np.float32))
        it.loop.turn()
        served.costs.record(1, 512, 1e-6)
        second = it.submit("m", np.ones((1, 512), np.float32))
        it.loop.turn()

        assert it.outcomes == {first: [], second: []}
        it.settle()
        assert all(it.answer(number).shape == (1, 512) for number in (first, second))


def test_a_gpu_without_memory_takes_fewer_at_once_and_what_is_too_large_alone_is_no_fault_of_its_values() -> None:
    with world() as it:
        served = it.serve("m", builders.scaled())
        run = served.session.run

        def narrow(inputs: Mapping[str, Tensor], *arguments: Any) -> dict[str, Tensor]:
            if len(inputs["x"].array) > 2:
                raise DeviceMemoryError("the GPU has no memory left for this run")
            return run(inputs, *arguments)

        served.session.run = narrow  # type: ignore[method-assign]
        small = [it.submit("m", rows(1)) for _ in range(4)]
        large = it.submit("m", rows(3, 4, 5))
        it.settle()

        for number in small:
            np.testing.assert_array_equal(it.answer(number), rows(1) * 2)
        assert it.error(large).reason is Reason.DEVICE_MEMORY
        assert it.error(large).code is Code.RESOURCE_EXHAUSTED
        assert "no memory left" in it.error(large).message
        assert it.is_free()


def test_as_many_long_runs_are_under_way_as_there_are_cores_for_and_what_waits_is_shared_out_among_them() -> None:
    with world() as it:
        served = it.serve("m", builders.slow(rounds=50), CostTable(), parallel_runs=2)
        for count_, run_s in ((1, 0.01), (2, 0.02), (4, 0.04)):
            served.costs.record(count_, 512, run_s)
        numbers = [it.submit("m", np.ones((1, 512), np.float32)) for _ in range(4)]
        it.loop.turn()
        assert it.engine.queued_examples() == {served: 2}
        it.loop.turn()
        assert it.engine.queued_examples() == {served: 0}
        last = it.submit("m", np.ones((1, 512), np.float32))
        it.loop.turn()
        assert it.engine.queued_examples() == {served: 1}
        it.settle()

        assert sorted(it.observer.sizes) == [1, 2, 2]
        assert all(it.answer(number).shape == (1, 512) for number in (*numbers, last))
        assert it.is_free()


def test_a_short_run_happens_on_the_loop_while_a_long_one_of_its_version_is_under_way() -> None:
    with world() as it:
        served = it.serve("m", builders.slow(), CostTable(), parallel_runs=2)
        served.costs.record(1, 512, 0.01)
        long = it.submit("m", np.ones((1, 512), np.float32))
        it.loop.turn()
        served.costs.record(1, 512, 1e-6)
        short = it.submit("m", np.ones((1, 512), np.float32))
        it.loop.turn()

        assert it.answer(short).shape == (1, 512)
        it.settle()
        assert it.answer(long).shape == (1, 512)
        assert it.is_free()


def test_a_queue_that_two_runs_share_holds_twice_the_work() -> None:
    accepted = {}
    for parallel_runs in (1, 2):
        with world() as it:
            limits = {"max_queue_ms": 100.0, "max_batch_size": 1, "parallel_runs": parallel_runs}
            served = it.serve("m", builders.slow(rounds=20), CostTable(), **limits)
            for _ in range(40):
                served.costs.record(1, 512, 0.01)
            first = it.submit("m", np.ones((1, 512), np.float32))
            it.loop.turn()
            numbers = [it.submit("m", np.ones((1, 512), np.float32)) for _ in range(100)]
            accepted[parallel_runs] = sum(not it.outcomes[number] for number in numbers)
            it.settle()
            assert it.answer(first).shape == (1, 512)
            assert it.is_free()

    assert accepted[1] <= 10 < accepted[2] <= 20
