"""Scenarios in the table, in words, in the plot and in the file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fitserve_benchmarks.latency_plot import colours_of, plot_scenarios
from fitserve_benchmarks.latency_report import print_report
from fitserve_benchmarks.rows import LatencyResult, Row, load_result
from fitserve_benchmarks.scenario_report import scenario_sentences
from fitserve_benchmarks.scenario_rows import ScenarioRow
from fitserve_benchmarks.statistics import Interval


def scenario(name: str, contestant: str, figure: float, spread: float = 0.01) -> ScenarioRow:
    low, high = figure * (1 - spread), figure * (1 + spread)
    trials = (low, figure, high)
    return ScenarioRow(
        name, contestant, "cpu", 1, 1, figure=Interval(figure, low, high), trial_figures=trials, query_count=3_460
    )


def skipped(name: str, contestant: str, reason: str) -> ScenarioRow:
    return ScenarioRow(name, contestant, "cpu", 1, 1, skipped=reason)


def result(*rows: ScenarioRow) -> LatencyResult:
    environment = {"packages": {}, "processor": "abacus", "usable_processors": [0], "gpus": [], "python": "3"}
    latency = Row("torch eager", "cpu", 1, 1, trial_medians_s=(1e-3,) * 5, sample_count=5)
    settings = {"trials": 5, "server_bound_s": 0.015}
    return LatencyResult("lenet", 3, "torch eager (cpu)", settings, environment, (latency,), rows)


ROWS = (
    scenario("SingleStream", "torch eager", 200e-6),
    scenario("SingleStream", "ONNX Runtime", 25e-6),
    scenario("Server", "torch eager", 4_000),
    scenario("Server", "ONNX Runtime", 20_000),
    scenario("Offline", "torch eager", 30_000),
    scenario("Offline", "ONNX Runtime", 30_100),
    skipped("MultiStream", "torch eager", "needs 1,521 queries: about 30 s, the budget is 10 s"),
)


def test_each_scenario_says_who_leads_by_how_much_or_that_they_are_level() -> None:
    assert list(scenario_sentences(ROWS)) == [
        "SingleStream, 1 thread: ONNX Runtime (cpu) leads with a p90 of 25.0 µs, 8.00× as fast as torch eager (cpu).",
        "Server, 1 thread: ONNX Runtime (cpu) leads with 20,000 queries/s, 5.00× the rate of torch eager (cpu).",
        "Offline, 1 thread: ONNX Runtime (cpu) with 30,100 examples/s and torch eager (cpu) with 30,000 examples/s are "
        "level.",
    ]


def test_the_report_has_the_table_the_reasons_and_what_differs_from_mlperf() -> None:
    shaky = replace(ROWS[1], trial_figures=(25e-6, 30e-6, 40e-6))
    console = Console(file=io.StringIO(), width=100)
    print_report(result(ROWS[0], shaky, *ROWS[2:]), console)
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "SingleStream, p90 ONNX Runtime (cpu) ~ 25.0 µs (24.8–25.2) 8.00 3,460 0.0e+00" in lines
    assert "Server, queries/s torch eager (cpu) 4,000 (3,960–4,040) 3,460 0.0e+00" in lines
    text = " ".join(lines)
    assert "torch eager (cpu), MultiStream, 1 thread: not measured, needs 1,521 queries" in text
    assert "within 15 ms of when they were due" in text
    assert "these are no MLPerf results" in text


def test_scenarios_come_back_from_the_file_and_are_drawn(tmp_path: Path) -> None:
    found = result(*ROWS)
    found.save(tmp_path / "latency.json")
    assert load_result(tmp_path / "latency.json") == found
    plot_scenarios(found, tmp_path / "scenarios.svg")
    assert (tmp_path / "scenarios.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize("count", [1, 2])
def test_there_is_a_panel_for_each_scenario_and_no_other(tmp_path: Path, count: int) -> None:
    names = list(dict.fromkeys(row.scenario for row in ROWS if row.figure is not None))[:count]
    found = result(*(row for row in ROWS if row.scenario in names))
    plot_scenarios(found, tmp_path / "scenarios.svg")
    assert (tmp_path / "scenarios.svg").read_text().count('<g id="matplotlib.axis_') == 2 * count


def test_a_skipped_row_has_no_figure() -> None:
    with pytest.raises(ValueError, match=r"scenario MultiStream, torch eager .*: expected a figure, got none: needs"):
        _ = ROWS[-1].measured


def test_more_is_better_for_rates_and_less_for_times() -> None:
    assert ROWS[1].times_as_good_as(ROWS[0]) == pytest.approx(8.0)
    assert ROWS[3].times_as_good_as(ROWS[2]) == pytest.approx(5.0)


def test_every_contestant_has_a_colour_and_families_keep_theirs() -> None:
    names = ["torch eager", "torch.compile", "torch.compile max-autotune", "ONNX Runtime", "ONNX Runtime int8", "other"]
    colours = colours_of(names)
    assert len(set(colours.values())) == len(names)
    assert colours == {**colours_of([*names, "ONNX Runtime"]), "other": colours["other"]}
