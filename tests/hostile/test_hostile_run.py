"""A seeded slice of `fitserve-bench hostile`: the whole product attacked, and nothing lost."""

from __future__ import annotations

import pytest

from fitserve_benchmarks.hostile import HostilePlan, run_hostile


@pytest.mark.parametrize("transport", ["fast", pytest.param("stock", marks=pytest.mark.slow)])
def test_nothing_is_lost_under_attack(transport: str) -> None:
    plan = HostilePlan(requests=3_000, models=30, seed=7, options=("--transport", transport))
    result = run_hostile(plan, lambda _: None)
    assert result.is_right, "\n".join([*result.lines(), *result.faults, *result.leaks, *result.innocent_lost])
    assert sum(result.codes.values()) == 3_000
    assert result.codes["INVALID_ARGUMENT"] > 100
    assert sum(result.states.values()) == 30
    assert result.innocent_count > 0
