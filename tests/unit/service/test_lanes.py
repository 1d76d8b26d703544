"""Where a run of a millisecond or two happens: on the loop thread, or beside others of its version."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from engine_world import world

from fitserve_service.costs import CostTable
from fitserve_service.lanes import INLINE_LIMIT_S


@pytest.mark.parametrize(
    ("run_s", "parallel_runs", "waiting", "is_answered_at_once"),
    [
        (0.0015, 2, 0, True),
        (0.0015, 2, 1, False),
        (0.0015, 1, 1, True),
        (0.0005, 2, 1, True),
        (2 * INLINE_LIMIT_S, 2, 0, False),
    ],
)
def test_a_run_leaves_the_loop_where_it_is_long_or_where_more_waits_that_could_run_beside_it(
    run_s: float, parallel_runs: int, waiting: int, is_answered_at_once: bool
) -> None:
    with world() as it:
        costs = CostTable()
        costs.record(1, 2, run_s)
        it.serve("m", builders.scaled(), costs, max_batch_size=0, parallel_runs=parallel_runs)
        first, *others = (it.submit("m", np.ones((1, 2), np.float32)) for _ in range(1 + waiting))
        it.loop.turn()

        assert bool(it.outcomes[first]) is is_answered_at_once
        it.settle()
        assert all(it.answer(number).tolist() == [[2, 2]] for number in (first, *others))
        assert it.is_free()
