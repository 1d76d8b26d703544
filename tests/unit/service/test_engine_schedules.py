"""A law of the engine, under schedules made up by chance: every job has one outcome, every lease comes back."""

from __future__ import annotations

import queue

import builders
import numpy as np
from engine_world import BAD, World, world
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract.tensor_bytes import Array
from fitserve_service.batcher import Priority
from fitserve_service.costs import CostTable
from fitserve_service.engine import Completed, Outcome
from fitserve_service.errors import Reason


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
