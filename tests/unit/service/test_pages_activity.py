"""Rates and latencies of a window, from counters."""

from bisect import bisect_left
from pathlib import Path
from typing import Any, cast
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import builders

from fitserve_service.errors import Code
from fitserve_service.histogram import Histogram
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.pages_activity import Activity, quantile_ms
from fitserve_service.registry import Registry
from fitserve_service.telemetry import EXPOSED_SECONDS, SECONDS_BOUNDS, Instance, Telemetry, VersionCounts


class Version:
    """Stands for a loaded instance of a version."""


VERSION = Version()
KEY: Instance = cast(Any, ref(VERSION))


class World:
    """A clock and counters that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.requests: list[tuple[float, bool]] = []

    def counts(self) -> dict[Instance, VersionCounts]:
        latency = [0] * (len(SECONDS_BOUNDS) + 1)
        for seconds, _ in self.requests:
            latency[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        errors = sum(is_error for _, is_error in self.requests)
        return {KEY: VersionCounts(len(self.requests), errors, tuple(latency))} if self.requests else {}

    def activity(self) -> Activity:
        return Activity(self.counts, lambda: self.now_s)


def test_figures_are_of_the_window_and_not_of_all_time() -> None:
    world = World()
    activity = world.activity()
    world.requests += [(1.0, True)] * 50
    for _ in range(6):
        world.now_s += 2
        activity.sample()
    world.requests += [(0.002, False)] * 30
    world.now_s += 2
    window_s, figures = activity.figures()
    assert window_s == 12
    assert figures[KEY].request_count == 80
    assert figures[KEY].requests_per_s == 30 / 12
    assert figures[KEY].errors_per_s == 0
    p50_ms = figures[KEY].p50_ms
    assert p50_ms is not None
    assert 2 <= p50_ms <= 2.2


def test_first_figures_are_since_the_start() -> None:
    world = World()
    activity = world.activity()
    world.requests += [(0.001, False)] * 3 + [(0.001, True)]
    world.now_s += 1
    window_s, figures = activity.figures()
    assert (window_s, figures[KEY].requests_per_s, figures[KEY].errors_per_s) == (1, 4, 1)


def test_an_instance_of_the_same_name_and_number_has_figures_of_its_own(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    telemetry = Telemetry(Registry(), dict, {})
    old, new = (Loader("cpu").load(path, Overrides({})) for _ in range(2))
    telemetry.on_request("Predict", old, Code.INTERNAL, 5.0)
    activity = Activity(telemetry.counts)
    telemetry.on_request("Predict", old, Code.INTERNAL, 5.0)
    assert ref(new) not in activity.figures()[1]
    telemetry.on_request("Predict", new, Code.OK, 0.001)
    figures = activity.figures()[1]
    found = figures[ref(new)]
    assert (found.request_count, found.errors_per_s) == (1, 0)
    assert found.p99_ms is not None
    assert found.p99_ms < 2
    assert figures[ref(old)].request_count == 2


def test_version_that_came_back_is_counted_anew() -> None:
    world = World()
    world.requests += [(0.001, True)] * 9
    activity = world.activity()
    world.requests = [(0.001, False)] * 2
    world.now_s += 1
    _, figures = activity.figures()
    assert (figures[KEY].requests_per_s, figures[KEY].errors_per_s) == (2, 0)


def test_idle_version_has_rates_of_nought_and_no_latency() -> None:
    world = World()
    world.requests += [(0.001, False)]
    activity = world.activity()
    world.now_s += 1
    found = activity.figures()[1][KEY]
    assert (found.requests_per_s, found.p50_ms, found.p99_ms) == (0, None, None)


@given(st.lists(st.floats(1.2e-5, 9.9), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantile_is_a_tenth_above_the_true_one_at_most(seconds: list[float], share: float) -> None:
    histogram = Histogram(SECONDS_BOUNDS)
    for value in seconds:
        histogram.observe(value)
    rank = max(-(-len(seconds) * share // 1), 1)
    true_ms = sorted(seconds)[int(rank) - 1] * 1e3
    found = quantile_ms(histogram.counts, share)
    assert found is not None
    assert true_ms <= found * (1 + 1e-12)
    assert found <= true_ms * 1.1 * (1 + 1e-9)


@given(st.lists(st.floats(0, 20), max_size=40))
def test_prometheus_is_told_the_same_as_with_its_own_bounds(seconds: list[float]) -> None:
    fine, coarse = Histogram(SECONDS_BOUNDS, EXPOSED_SECONDS), Histogram(EXPOSED_SECONDS)
    for value in seconds:
        fine.observe(value)
        coarse.observe(value)
    assert fine.cumulative() == coarse.cumulative()
    assert fine.cumulative()[-1] == ("+Inf", len(seconds))


@pytest.mark.parametrize(("method", "count"), [("Predict", 1), ("ModelInfer", 1), ("Evaluate", 0)])
def test_evaluate_is_left_out(tmp_path: Path, method: str, count: int) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    served = Loader("cpu").load(path, Overrides({}))
    telemetry = Telemetry(Registry(), dict, {})
    telemetry.on_request(method, served, Code.OK, 0.1)
    telemetry.on_request(method, None, Code.NOT_FOUND, 0.1)
    counts = telemetry.counts()
    assert list(counts) == [ref(served)]
    found = counts[ref(served)]
    assert (found.request_count, found.error_count, sum(found.latency)) == (count, 0, count)
