"""Two latency results: who became faster, who cannot be compared, and what else changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fitserve_benchmarks.cli import main
from fitserve_benchmarks.compare import changes, unlike
from fitserve_benchmarks.rows import LatencyResult, Row
from fitserve_benchmarks.scenario_rows import ScenarioRow
from fitserve_benchmarks.statistics import Interval


def row(contestant: str, *medians_s: float, batch_size: int = 1, skipped: str | None = None) -> Row:
    return Row(contestant, "cpu", batch_size, 1, skipped=skipped, trial_medians_s=medians_s)


def result(*rows: Row, version: int = 1, **environment: object) -> LatencyResult:
    return LatencyResult("m", version, rows[0].label, {}, {"processor": "x", "packages": {}, **environment}, rows)


def test_rows_are_paired_by_contestant_batch_and_threads_and_judged_by_their_intervals() -> None:
    old = result(row("a", 4e-3, 4.1e-3, 4e-3), row("b", 1e-3, 1e-3, 1e-3), row("c", 2e-3, 2e-3, 2e-3), row("gone", 1.0))
    new = result(
        row("a", 2e-3, 2.1e-3, 2e-3),
        row("b", 1.5e-3, 1.5e-3, 1.5e-3),
        row("c", 2e-3, 2e-3, 2e-3),
        row("a", 1e-3, 1e-3, 1e-3, batch_size=8),
        row("new", 1.0, 1.0, 1.0),
    )
    pairs = changes(old, new)
    assert [(pair.label, pair.verdict) for pair in pairs] == [
        ("a (cpu)", "faster"),
        ("b (cpu)", "slower"),
        ("c (cpu)", "level"),
    ]
    assert pairs[0].times_as_fast == pytest.approx(2.0)


def test_an_unstable_row_is_not_judged_and_a_skipped_one_is_left_out() -> None:
    shaky, steady = row("a", 1e-3, 2e-3, 4e-3), row("a", 1e-3, 1e-3, 1e-3)
    assert [pair.verdict for pair in changes(result(steady), result(shaky))] == ["unstable"]
    assert changes(result(steady), result(row("a", skipped="no compiler"))) == []


def scenario(name: str, *figures: float, contestant: str = "a") -> ScenarioRow:
    figure = Interval(figures[1], figures[0], figures[2])
    return ScenarioRow(name, contestant, "cpu", 1, 1, figure=figure, trial_figures=figures)


def test_scenarios_are_paired_too_and_of_rates_more_is_better() -> None:
    old = replace(
        result(row("a", 1.0)),
        scenarios=(scenario("SingleStream", 1.0, 1.01, 1.02), scenario("Server", 100.0, 101.0, 102.0)),
        settings={"server_bound_s": 0.015},
    )
    new = replace(
        result(row("b", 1.0)),
        scenarios=(
            scenario("Server", 200.0, 202.0, 204.0),
            scenario("SingleStream", 2.0, 2.02, 2.04),
            scenario("Offline", 1.0, 1.0, 1.0),
        ),
        settings={"server_bound_s": 0.1},
    )
    pairs = changes(old, new)
    assert [(pair.place, pair.verdict) for pair in pairs] == [
        (("1", "Server"), "faster"),
        (("1", "SingleStream"), "slower"),
    ]
    assert [pair.times_as_fast for pair in pairs] == pytest.approx([2.0, 0.5])
    assert unlike(old, new) == ["server_bound_s: 0.015 before, 0.1 now"]


def test_what_else_differs_is_named() -> None:
    old = result(row("a", 1.0), processor="x", packages={"torch": "2.11", "numpy": "2"}, gpus=[])
    new = result(row("a", 1.0), processor="y", packages={"torch": "2.13", "numpy": "2"}, gpus=["H200"], version=2)
    assert unlike(old, new) == [
        "processor: x before, y now",
        "gpus: none before, H200 now",
        "torch: 2.11 before, 2.13 now",
        "model: m version 1 before, m version 2 now",
    ]


def test_the_command_prints_the_changes_or_says_that_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    result(row("a", 4e-3, 4e-3, 4e-3)).save(old)
    result(row("a", 2e-3, 2e-3, 2e-3), processor="y").save(new)
    assert main(["compare", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert "faster" in printed
    assert "differs: processor: x before, y now" in printed

    result(row("b", 1.0, 1.0, 1.0)).save(new)
    assert main(["compare", str(old), str(new)]) == 2
    assert "expected rows that" in capsys.readouterr().err
