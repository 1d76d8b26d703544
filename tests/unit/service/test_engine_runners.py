"""Long runs: beside the loop, several at a time, on a GPU, and how one that never ends is ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import builders
import numpy as np
from engine_world import BAD, indices, rows, world

from fitserve_service.costs import CostTable
from fitserve_service.errors import Code, Reason, ServiceError
from fitserve_service.run_errors import DeviceMemoryError
from fitserve_service.session import CUDA_PROVIDER
from fitserve_service.signature import Tensor


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
