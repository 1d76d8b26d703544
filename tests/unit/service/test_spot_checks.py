"""Joined requests that are run again: what is compared, what a mismatch does, and what it may cost."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import builders
import numpy as np
import pytest
from engine_world import BAD, World, rows, world
from onnx import TensorProto, helper

from fitserve_service.batcher import Priority
from fitserve_service.batching import spot_checks
from fitserve_service.batching.spot_checks import SpotChecks, check, sample_of
from fitserve_service.runs import Job, Prepared, Run, carry_out
from fitserve_service.session import RunSwitch
from fitserve_service.signature import Tensor


def joined_run(it: World, name: str, *arrays: Any) -> Run:
    """Queues requests and carries out the run that joins them."""
    runs: list[Run] = []
    it.engine._spot_checks.saw = runs.append  # type: ignore[method-assign]
    for array in arrays:
        it.submit(name, array)
    it.settle()
    return runs[0]


def test_an_independent_model_matches_at_every_position() -> None:
    with world() as it:
        served = it.serve("m", builders.linear(2, 3))
        run = joined_run(it, "m", rows(1), rows(2, 3), rows(1e30), rows(np.nan, 5))
        assert run.joined_rows == 6
        for index in range(4):
            assert check(sample_of(run, index), RunSwitch()).difference == ""
        assert served.signature.has_batch_axis


@pytest.mark.parametrize(
    "model", [builders.cumulative_sum(), builders.softmax_over_batch()], ids=["cumulative", "softmax"]
)
def test_a_coupled_model_is_found_and_its_requests_run_alone_from_then_on(model: bytes) -> None:
    with world() as it:
        served = it.serve("m", model, spot_check_share=1.0)
        told: list[str] = []
        it.engine._on_coupled = lambda _, problem: told.append(problem)
        it.engine._spot_checks._draw = lambda: 0.99  # the last request: the first of a cumulative sum feels nobody
        for value in (1, 2, 3):
            it.submit("m", rows(value))
        it.settle()
        it.loop.run_until(lambda: served.spot_check_count > 0)

        assert told == [served.joining.removeprefix("not joinable: ")]
        assert served.joining.startswith(
            "not joinable: a spot check found a row that depends on its neighbours: output"
        )
        assert not served.signature.has_batch_axis
        before = len(it.observer.sizes)
        alone = [it.submit("m", rows(value)) for value in (5, 7)]
        it.settle()
        assert it.observer.sizes[before:] == [1, 1]
        lone = it.submit("m", rows(7))
        it.settle()
        assert it.answer(alone[1]).tobytes() == it.answer(lone).tobytes()


def test_answers_that_depend_on_the_size_of_the_batch_are_found() -> None:
    divided = builders.model(
        [
            helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
            helper.make_node("Cast", ["s"], ["n"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["x", "n"], ["y"]),
        ],
        [builders.value("x")],
        [builders.value("y")],
    )
    constant = builders.model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["k"], ["z"])],
        [builders.value("x")],
        [builders.value("y"), builders.value("z", (2,))],
        {"k": np.array([1, 2], np.float32)},
    )
    for model, found in ((divided, "to the same rows alone"), (constant, "expected shape (2,), got shape (1,)")):
        with world() as it:
            it.serve("m", model)
            run = joined_run(it, "m", rows(1), rows(2))
            assert found.replace("got shape", "got") in check(sample_of(run, 1), RunSwitch()).difference


def test_outputs_without_the_rows_that_were_joined_stop_joining_at_once() -> None:
    model = builders.model(
        [helper.make_node("Identity", ["k"], ["y"])],
        [builders.value("x")],
        [builders.value("y", (2,))],
        {"k": np.array([1, 2], np.float32)},
    )
    with world() as it:
        served = it.serve("m", model, spot_check_share=0.0)
        numbers = [it.submit("m", rows(value)) for value in range(4)]
        it.settle()
        assert [it.answer(number).tolist() for number in numbers] == [[1, 2]] * 4
        assert "its outputs do not have a row for each row of the inputs: output 'y'" in served.joining
        assert served.spot_mismatch_count == 1


def test_requests_that_wait_when_joining_stops_run_alone() -> None:
    with world() as it:
        served = it.serve("m", builders.scaled(), max_queue_delay_ms=1000.0)
        numbers = [it.submit("m", rows(value)) for value in (1, 2, 3)]
        it.engine.cancel(it.jobs[1])
        it.engine.stop_joining(served, "found")
        it.settle()
        assert it.observer.sizes == [1, 1]
        assert it.answer(numbers[2]).tolist() == [[6, -6]]
        assert it.is_free()


def test_padding_counts_as_rows_of_the_run() -> None:
    with world() as it:
        it.serve("m", builders.scaled(), batch_size_buckets=(8,))
        run = joined_run(it, "m", rows(1), rows(2))
        assert run.joined_rows == 8
        assert check(sample_of(run, 1), RunSwitch()).difference == ""


def test_a_run_of_which_an_operator_refused_a_row_is_not_checked() -> None:
    with world() as it:
        served = it.serve("m", builders.gather())
        leases = [it.registry.lease("m") for _ in range(3)]
        prepared = [
            Prepared.check(served.signature, {"index": Tensor("INT64", np.array([value]))}, ()) for value in (1, BAD, 2)
        ]
        jobs = [
            Job(lease, each, None, Priority.PREDICT, lambda *_: None)
            for lease, each in zip(leases, prepared, strict=True)
        ]
        run = Run(served, jobs, [0.0] * 3, 3)
        carry_out(run)
        assert run.joined_rows == 0
        assert [isinstance(answer, Exception) for answer in run.answers] == [False, True, False]


class Later:
    """Runners that run nothing by themselves."""

    def __init__(self) -> None:
        self.submitted: list[Future[Any]] = []

    def submit(self, *_: Any) -> Future[Any]:
        self.submitted.append(Future())
        return self.submitted[-1]


@pytest.fixture
def seen() -> Any:
    with world() as it:
        it.serve("m", builders.scaled(), spot_check_share=0.25)
        yield joined_run(it, "m", rows(1), rows(2))


@pytest.mark.parametrize(("drawn", "count"), [(0.49, 1), (0.51, 0)])
def test_each_joined_request_is_drawn_by_the_share(seen: Run, drawn: float, count: int) -> None:
    later = Later()
    checks = SpotChecks(later, lambda _: None, lambda *_: None, draw=lambda: drawn)  # type: ignore[arg-type]
    checks.saw(seen)
    assert len(later.submitted) == count


def test_one_check_at_a_time_and_none_beyond_a_hundredth_of_the_processor_time(seen: Run) -> None:
    later, answered, processor_s = Later(), [], [1.0]
    checks = SpotChecks(
        later,  # type: ignore[arg-type]
        lambda callback: callback(),
        lambda _, difference: answered.append(difference),
        draw=lambda: 0.0,
        processor_s=lambda: processor_s[0],
    )
    checks.saw(seen)
    checks.saw(seen)
    assert len(later.submitted) == 1
    later.submitted[0].set_result(spot_checks.Result("", 0.02))
    assert answered == [""]
    checks.saw(seen)
    assert len(later.submitted) == 1  # 0.02 s are more than a hundredth of 1 s
    processor_s[0] = 2.1
    checks.saw(seen)
    assert len(later.submitted) == 2
    checks.close()
    later.submitted[1].set_result(spot_checks.Result("late", 0.0))
    assert answered == [""]


def test_a_check_that_cannot_run_says_nothing(seen: Run) -> None:
    switch = RunSwitch()
    switch.turn_off()
    assert check(sample_of(seen, 0), switch).difference == ""
