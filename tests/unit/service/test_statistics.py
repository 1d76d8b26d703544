"""The counters of a version."""

from __future__ import annotations

import time

from fitserve_service.statistics import VersionStatistics


def test_a_run_counts_its_requests_its_examples_and_its_times() -> None:
    statistics = VersionStatistics()
    before_ms = time.time_ns() // 1_000_000
    statistics.add_run(5, [0.001, 0.003], input_s=0.0001, run_s=0.01, output_s=0.0002)
    statistics.add_run(1, [0.0], input_s=0.0, run_s=0.01, output_s=0.0)

    assert (statistics.inference_count, statistics.execution_count) == (6, 2)
    assert before_ms <= statistics.last_inference_ms <= time.time_ns() // 1_000_000
    assert (statistics.queue.count, statistics.queue.ns) == (3, 4_000_000)
    assert (statistics.compute_input.count, statistics.compute_input.ns) == (3, 200_000)
    assert (statistics.compute_infer.count, statistics.compute_infer.ns) == (3, 30_000_000)
    assert (statistics.compute_output.count, statistics.compute_output.ns) == (3, 400_000)
    assert statistics.success.count == 3
    assert abs(statistics.success.ns - 34_600_000) <= 3
    assert {size: duration.count for size, duration in statistics.batch.items()} == {5: 1, 1: 1}


def test_a_failure_is_no_success() -> None:
    statistics = VersionStatistics()
    statistics.add_failure(0.002)

    assert (statistics.fail.count, statistics.fail.ns) == (1, 2_000_000)
    assert statistics.success.count == statistics.execution_count == 0


def test_sizes_that_callers_choose_are_bounded_and_every_run_is_counted() -> None:
    statistics = VersionStatistics()
    for size in range(1, 20_001):
        statistics.add_run(size, [0.0], input_s=0.0, run_s=0.001, output_s=0.0)

    assert len(statistics.batch) <= 1_024 + 64
    assert sum(duration.count for duration in statistics.batch.values()) == statistics.execution_count == 20_000
