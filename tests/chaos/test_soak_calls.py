"""A server that holds under calls, resets and nonsense passes the soak on either transport; one that leaks does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitserve_benchmarks.soak_calls import CallSoakPlan, soak_calls


@pytest.mark.parametrize("transport", ["fast", pytest.param("stock", marks=pytest.mark.slow)])
def test_a_server_under_calls_and_nonsense_keeps_its_size(transport: str, tmp_path: Path) -> None:
    result = soak_calls(tmp_path, CallSoakPlan(8_000, transport, rude_rate=100.0, period_s=0.1), lambda _: None)

    assert result.is_right, result.lines()
    assert result.bulk.right_count == 8_000
    assert result.rude.right_count > 0
    done = {name for name in result.rude.counts if not name.startswith("  ")}
    assert done >= {"reset before its body", "reset within its body", "reset after its body", "reset later"}
    assert done >= {"connections with malformed frames"}


@pytest.mark.slow
def test_a_server_that_leaks_fails(tmp_path: Path) -> None:
    plan = CallSoakPlan(60_000, rude_rate=50.0, period_s=0.1, has_leak=True)
    result = soak_calls(tmp_path / "work", plan, lambda _: None)
    result.save(tmp_path / "soak.json")

    assert not result.is_right
    assert [growth.name for growth in result.growths if not growth.is_allowed], result.lines()
    assert (result.bulk.right_count, result.bulk.wrong_count) == (60_000, 0)
    assert json.loads((tmp_path / "soak.json").read_text())["is_right"] is False
