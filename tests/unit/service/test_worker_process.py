"""How long the parent waits before it starts a worker again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.worker_process import BackOff


def test_waits_double_while_workers_die_young() -> None:
    back_off = BackOff(first_s=1.0, most_s=5.0, calm_s=30.0)
    assert [back_off.after(0.5) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_one_that_lived_long_starts_the_count_anew() -> None:
    back_off = BackOff(first_s=1.0, most_s=5.0, calm_s=30.0)
    assert [back_off.after(lived_s) for lived_s in (0.5, 0.5, 30.0, 0.5)] == [1.0, 2.0, 1.0, 2.0]


@given(st.lists(st.floats(0, 100), min_size=1))
def test_waits_stay_within_their_bounds(lives: list[float]) -> None:
    back_off = BackOff(first_s=0.1, most_s=10.0)
    assert all(0.1 <= back_off.after(lived_s) <= 10.0 for lived_s in lives)
