"""What runs together, and what each caller gets: every job is answered exactly once, by its own rows."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from engine_world import BAD, Free, indices, rows, world
from onnx import TensorProto, helper

from fitserve_service.engine import Job, Outcome
from fitserve_service.errors import Reason


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


def test_more_rows_than_are_joined_run_alone() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), max_batch_size=2)
        numbers = [it.submit("m", array) for array in (rows(1), rows(1, 2, 3), rows(2))]
        it.settle()

        assert [it.answer(number).tolist() for number in numbers] == [
            [[2, -2]],
            [[2, -2], [4, -4], [6, -6]],
            [[4, -4]],
        ]
        assert it.observer.sizes == [1, 1, 1]


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
        monkeypatch.setattr(it.jobs[1], "on_done", lambda _, __: 1 // 0)
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

        def submit_next(job: Job, outcome: Outcome) -> None:
            answered(job, outcome)
            it.submit("m", rows(2))

        it.jobs[first].on_done = submit_next
        it.settle()

        assert it.order == [0, 1]


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
