"""Rows, ratios and report of the servers' benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fitserve_benchmarks.poisson import PoissonResult
from fitserve_benchmarks.serve_load import Turn
from fitserve_benchmarks.serve_plot import plot_serve
from fitserve_benchmarks.serve_report import print_serve_report, ratio_lines
from fitserve_benchmarks.serve_rows import (
    Check,
    PoissonRow,
    ServeResult,
    ServeRow,
    make_poisson_row,
    make_row,
    rate_ratio,
)
from fitserve_benchmarks.serve_run import turn_times


def _turn(rate: float, latency_s: float = 1e-3, count: int = 600, failed: int = 0) -> Turn:
    return Turn(rate, np.full(count, latency_s), failed, (), 0.5, 2.0)


def _row(contestant: str, rate: float, in_flight: int = 32, latency_s: float = 1e-3) -> ServeRow:
    return make_row(("lenet", 1, in_flight), contestant, [_turn(rate, latency_s)] * 3, 3.0)


def _result(*rows: ServeRow, wrong: int = 0, poisson: tuple[PoissonRow, ...] = ()) -> ServeResult:
    environment = {"processor": "a processor", "usable_processors": [0, 1], "load_average": [0.5, 0.4, 0.3]}
    settings = {"turns": 3, "turn_s": 1.0, "thread_count": 1, "load_source": "h2load"}
    checks = [Check("lenet", 1, "fitserve fast", 10, wrong)]
    return ServeResult(
        settings, environment, (0.6, 0.5, 0.4), {"mlserver": "1.0"}, {"ray": "no wheel"}, rows, checks, poisson
    )


def test_a_row_sums_up_its_turns() -> None:
    row = make_row(("lenet", 1, 8), "one", [_turn(100.0), _turn(300.0), _turn(200.0, failed=2)], 2.4)
    assert row.requests_per_s == 200.0
    assert row.is_unstable
    assert (row.sample_count, row.failed_count) == (1800, 2)
    assert row.p99_s == pytest.approx(1e-3)
    assert row.cpu_per_request_s == pytest.approx(2.4 / 1200)
    assert row.load_processor_share == pytest.approx(0.25)


def test_a_row_of_few_calls_has_no_tail() -> None:
    assert make_row(("lenet", 1, 8), "one", [_turn(10.0, count=10)], 0.1).p99_s is None


def test_a_ratio_is_taken_turn_by_turn() -> None:
    fast = make_row(("lenet", 1, 8), "fast", [_turn(400.0), _turn(800.0), _turn(600.0)], 1.0)
    slow = make_row(("lenet", 1, 8), "slow", [_turn(100.0), _turn(200.0), _turn(150.0)], 1.0)
    ratio = rate_ratio(fast, slow)
    assert ratio is not None
    assert (ratio.low, ratio.estimate, ratio.high) == (4.0, 4.0, 4.0)
    assert rate_ratio(fast, make_row(("lenet", 1, 8), "dead", [_turn(0.0, count=0)] * 3, 0.0)) is None


def test_the_lines_hold_ours_against_each_other_contestant() -> None:
    single = [_row("fitserve fast", 3_000, 1, 3e-4), _row("echo, completion queue", 9_000, 1, 1e-4)]
    rows = [_row("fitserve fast", 8_000), _row("mlserver", 1_000), _row("echo, grpc.aio", 4_000), *single]
    rows.append(_row("ONNX Runtime in process", 9_000, 1, 1e-4))
    tail = PoissonRow("lenet", "fitserve fast", 1_000.0, 700.0, 1e-3, 3e-3, 2_800, 0, 1e-5)
    floor = PoissonRow("lenet", "echo, completion queue", 9_000.0, 700.0, 1e-4, 5e-4, 2_800, 0, 1e-5)
    lines = ratio_lines(_result(*rows, poisson=(tail, floor)))
    assert "lenet, batch 1, 32 in flight: 8.00× (8.00–8.00) the requests/s of mlserver" in lines
    assert "lenet, batch 1, 32 in flight: 2.00× (2.00–2.00) the requests/s of echo, grpc.aio" in lines
    assert any("median 300 µs is 1.50 times" in line for line in lines)
    assert any(
        line.endswith("p99 is 3.00 times the median; of the completion queue's echo at that rate 5.00")
        for line in lines
    )
    assert any("p99 is 3.00 times the median" in line for line in ratio_lines(_result(*rows, poisson=(tail,))))


def test_a_row_that_its_client_disturbed_says_so() -> None:
    turn = (1_000.0, 700.0, PoissonResult(np.full(2_000, 1e-3), np.full(2_000, 5e-5), 0, 3, 0.2))
    late = (1_000.0, 700.0, PoissonResult(np.full(2_000, 1e-3), np.full(2_000, 5e-4), 1, 0, 0.2))
    quiet, disturbed = (make_poisson_row("lenet", "fitserve fast", turns) for turns in ([turn], [turn, late, late]))
    assert not quiet.is_disturbed
    assert disturbed.is_disturbed
    assert (disturbed.sample_count, disturbed.failed_count, disturbed.held_count) == (6_000, 2, 3)
    assert disturbed.load_cpu_per_request_s == pytest.approx(1e-4)
    row = _row("fitserve fast", 8_000)
    assert not any("the client itself" in line for line in ratio_lines(_result(row, poisson=(quiet,))))
    assert any("the client itself sent 500 µs late" in line for line in ratio_lines(_result(row, poisson=(disturbed,))))


@pytest.mark.parametrize(
    ("level", "call_s", "expected"),
    [(1, 1e-4, (1.0, 0.3)), (32, 0.01, (1.92, 0.32)), (64, 1.0, (10.0, 3.0))],
)
def test_a_turn_is_long_enough_for_its_calls_and_no_longer_than_ten_seconds(
    level: int, call_s: float, expected: tuple[float, float]
) -> None:
    assert turn_times(1.0, level, call_s) == pytest.approx(expected)
    assert turn_times(20.0, level, call_s)[0] == 20.0


def test_echoes_far_beyond_every_server_are_left_out_of_a_panel(tmp_path: Path) -> None:
    rows = [_row("fitserve fast", 60), _row("mlserver", 50), _row("echo, grpc.aio", 6_000)]
    plot_serve(_result(*rows), tmp_path / "far.svg")
    plot_serve(_result(*rows[:2], _row("echo, grpc.aio", 200)), tmp_path / "near.svg")
    assert "<!-- echo, grpc.aio -->" not in (tmp_path / "far.svg").read_text()
    assert "<!-- lenet, batch 1, echoes beyond the frame -->" in (tmp_path / "far.svg").read_text()
    assert "<!-- echo, grpc.aio -->" in (tmp_path / "near.svg").read_text()


def test_the_report_names_who_was_left_out_and_why() -> None:
    console = Console(width=1000, record=True)
    print_serve_report(_result(_row("fitserve fast", 8_000)), console)
    text = console.export_text()
    assert "ray: not measured, no wheel" in text
    assert "10 of 10 sampled answers right" in text
    assert "load average 0.5 before, 0.6 after" in text


def test_a_wrong_answer_or_a_failed_call_makes_a_run_wrong() -> None:
    assert _result(_row("fitserve fast", 1.0)).is_right
    assert not _result(_row("fitserve fast", 1.0), wrong=1).is_right
    failed = make_row(("lenet", 1, 1), "fitserve fast", [_turn(1.0, failed=1)], 1.0)
    assert not _result(failed).is_right


def test_a_result_is_written_as_json_and_as_a_plot(tmp_path: Path) -> None:
    result = _result(_row("fitserve fast", 8_000), _row("echo, grpc.aio", 4_000))
    result.save(tmp_path / "new" / "serve.json")
    document = json.loads((tmp_path / "new" / "serve.json").read_text())
    assert [row["contestant"] for row in document["rows"]] == ["fitserve fast", "echo, grpc.aio"]
    plot_serve(result, tmp_path / "plots" / "serve.svg")
    assert "<svg" in (tmp_path / "plots" / "serve.svg").read_text()
