"""When the engine runs what waits: deadlines, room, delays and what runs are known to cost."""

from __future__ import annotations

import builders
import pytest
from engine_world import Free, rows, world

from fitserve_service.batcher import AGING_S, Priority
from fitserve_service.costs import CostTable
from fitserve_service.errors import Reason
from fitserve_service.pacing import WINDOW_COUNT


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
