"""A latency target sets delay and size by itself: the controller on made-up latencies, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_service.pacing import WINDOW_COUNT, Pacing


def window(pacing: Pacing, latency_s: float, slow_count: int = 0, slow_s: float = 0.0) -> bool:
    """Feeds one window of latencies; tells whether it changed anything."""
    values = [slow_s] * slow_count + [latency_s] * (WINDOW_COUNT - slow_count)
    return [pacing.observe(value) for value in values][-1]


def test_room_below_the_target_is_used_to_wait_for_others() -> None:
    pacing = Pacing(target_s=0.1, most_rows=64)
    for _ in range(100):
        window(pacing, 0.01)
    assert pacing.delay_s == pytest.approx(0.05)
    assert pacing.max_rows == 64


def test_a_missed_target_takes_the_delay_back_first_and_then_the_size() -> None:
    pacing = Pacing(target_s=0.1, most_rows=64, delay_s=0.04)
    delays, sizes = [], []
    for _ in range(40):
        window(pacing, 0.2)
        delays.append(pacing.delay_s)
        sizes.append(pacing.max_rows)
    assert delays == sorted(delays, reverse=True)
    assert (delays[-1], sizes[-1]) == (0.0, 1)
    assert all(size == 64 for delay, size in zip(delays, sizes, strict=True) if delay)


def test_the_size_comes_back_before_anybody_waits() -> None:
    pacing = Pacing(target_s=0.1, most_rows=8, max_rows=1)
    while pacing.max_rows < 8:
        assert pacing.delay_s == 0.0
        assert window(pacing, 0.01)


def test_two_of_two_hundred_may_be_slow_and_three_may_not() -> None:
    pacing = Pacing(target_s=0.1, most_rows=8, delay_s=0.04)
    assert not window(pacing, 0.09, slow_count=2, slow_s=5.0)
    assert window(pacing, 0.09, slow_count=3, slow_s=5.0)
    assert pacing.delay_s == pytest.approx(0.02)


def test_nothing_changes_within_a_window_or_near_the_target() -> None:
    pacing = Pacing(target_s=0.1, most_rows=8)
    assert not any(pacing.observe(5.0) for _ in range(WINDOW_COUNT - 1))
    pacing = Pacing(target_s=0.1, most_rows=8)
    assert not window(pacing, 0.09)


@given(st.floats(1e-4, 10), st.integers(1, 256), st.lists(st.floats(0, 20), max_size=30))
def test_delay_and_size_stay_within_their_bounds(target_s: float, most_rows: int, latencies: list[float]) -> None:
    pacing = Pacing(target_s, most_rows)
    for latency_s in latencies:
        window(pacing, latency_s)
        assert 0 <= pacing.delay_s <= target_s / 2 * (1 + 1e-9)
        assert 1 <= pacing.max_rows <= most_rows


@given(st.floats(0.001, 0.05), st.floats(1e-4, 1e-3))
def test_it_settles_within_the_target_where_that_can_be(fixed_s: float, row_s: float) -> None:
    """A server whose latency is what it costs to run, plus the wait: the target is met and kept."""
    pacing = Pacing(target_s=0.1, most_rows=64)

    def latency_s() -> float:
        return fixed_s + row_s * pacing.max_rows + pacing.delay_s

    for _ in range(300):
        window(pacing, latency_s())
    misses = 0
    for _ in range(100):
        misses += latency_s() > 0.1
        window(pacing, latency_s())
    assert misses == 0
