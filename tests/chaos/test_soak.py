"""A server that holds what it held passes the soak, one that leaks does not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fitserve_benchmarks.soak import Sample, growths, soak


def samples(memory_per_s: float = 0.0, descriptors_per_s: float = 0.0, threads_per_s: float = 0.0) -> list[Sample]:
    """Half an hour that begins with a steep warm-up and is as rough as real memory."""
    noise = random.Random(0)
    return [
        Sample(
            float(at_s),
            100 + min(at_s, 300) + noise.uniform(-8, 8) + memory_per_s * at_s,
            30 + noise.randint(0, 6) + int(descriptors_per_s * at_s),
            9 + int(threads_per_s * at_s),
        )
        for at_s in range(1800)
    ]


def test_noise_and_a_warm_up_are_no_growth() -> None:
    assert all(growth.is_allowed for growth in growths(samples()))


@pytest.mark.parametrize(
    ("leak", "name"),
    [
        ({"memory_per_s": 0.02}, "memory, MiB"),
        ({"descriptors_per_s": 0.02}, "descriptors"),
        ({"threads_per_s": 0.005}, "threads"),
    ],
)
def test_each_slow_leak_is_seen_where_it_is(leak: dict[str, float], name: str) -> None:
    assert [growth.name for growth in growths(samples(**leak)) if not growth.is_allowed] == [name]


def test_too_short_a_run_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 6 samples, got 5"):
        growths(samples()[:5])


@pytest.mark.slow
def test_a_server_under_load_and_swaps_keeps_its_size(tmp_path: Path) -> None:
    result = soak(tmp_path, 0, 9, lambda _: None)

    assert result.is_right, (result.growths, result.tally)


@pytest.mark.slow
def test_a_server_that_leaks_fails(tmp_path: Path) -> None:
    result = soak(tmp_path, 0, 9, lambda _: None, leak=True)

    assert not result.is_right
    assert {growth.name for growth in result.growths if not growth.is_allowed} >= {"memory, MiB", "descriptors"}
    assert result.tally.failed == []
