"""Where a request's time goes: the parts add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_client.messages import timing_of
from fitserve_service.budget import Budget

TIMES = st.floats(0, 1e3)


@given(TIMES, TIMES, TIMES, TIMES, TIMES)
def test_the_parts_add_up_to_the_whole(
    begin_s: float, decode_s: float, wait_s: float, run_s: float, end_s: float
) -> None:
    budget = Budget(begin_s)
    budget.decoded(begin_s + decode_s)
    budget.answered(run_s, begin_s + decode_s + wait_s, begin_s + decode_s + wait_s + end_s)
    assert budget.total_s == pytest.approx(decode_s + wait_s + end_s, abs=1e-6)
    assert budget.queue_s >= 0
    assert budget.run_s == pytest.approx(min(run_s, wait_s), abs=1e-6)


def test_a_run_is_taken_out_of_the_wait() -> None:
    budget = Budget(10.0)
    budget.decoded(10.5)
    budget.answered(2.0, 13.5, 13.75)
    assert (budget.decode_s, budget.queue_s, budget.run_s, budget.encode_s) == (0.5, 1.0, 2.0, 0.25)


def test_the_client_reads_what_is_told() -> None:
    budget = Budget(0.0, decode_s=12.9e-6, queue_s=1.0, run_s=26e-6, encode_s=0.0)
    assert timing_of(budget.metadata()) == {"decode": 12, "queue": 1_000_000, "run": 26, "encode": 0}


@pytest.mark.parametrize("told", ["", "run_us", "run_us=-1,queue_us=x", "=,,="])
def test_the_client_leaves_out_what_it_cannot_read(told: str) -> None:
    assert timing_of([("other", b"\0"), ("fitserve-timing", told)]) == {}
