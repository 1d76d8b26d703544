"""What further workers cost is measured on real servers, and judged in words that say what was not measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import builders
import pytest

from fitserve_benchmarks import cli, worker_costs
from fitserve_benchmarks.worker_costs import WorkersPlan, WorkersResult, WorkersRow, run_workers
from fitserve_benchmarks.worker_costs_command import verdicts, workers_table

MIB = 1 << 20


def row(count: int, cpu_ratio: float = 1.0, rate_ratio: float | None = None) -> WorkersRow:
    memory = tuple(
        {
            "worker": number,
            "resident_bytes": 9 * MIB,
            "proportional_bytes": 5 * MIB,
            "private_bytes": (number + 1) * MIB,
        }
        for number in range(count)
    )
    return WorkersRow(count, 1e-4, cpu_ratio, 1000.0, rate_ratio, memory, 0, 0, 7)


def result(*rows: WorkersRow) -> WorkersResult:
    return WorkersResult({"model": "m", "in_flight": 8}, {"usable_processors": [0, 1]}, rows, 1.25)


@pytest.mark.slow
def test_one_worker_and_two_are_measured_with_the_answers_checked(tmp_path: Path) -> None:
    builders.bare_version(tmp_path / "repository", "m", 1, builders.linear())
    plan = WorkersPlan(tmp_path / "repository", "m", in_flight=4, turns=1, turn_s=0.5)
    lines: list[str] = []
    measured = run_workers(plan, lines.append)
    assert lines == ["turn 1 of 1"]
    assert [each.count for each in measured.rows] == [1, 2]
    assert measured.is_right
    for each in measured.rows:
        assert len(each.memory) == each.count
        assert each.cpu_s > 0
        assert each.checked_count > 0
        assert 0 < each.further_bytes <= each.memory[0]["resident_bytes"] * 2
    assert measured.rows[0].cpu_ratio == 1.0
    assert measured.busy_ratio > 0
    measured.save(tmp_path / "results" / "workers.json")
    assert json.loads((tmp_path / "results" / "workers.json").read_text())["rows"][1]["count"] == 2


@pytest.mark.parametrize(("cpu_ratio", "word"), [(1.15, "holds"), (1.16, "missed")])
def test_a_ratio_is_held_against_its_bound(cpu_ratio: float, word: str) -> None:
    first, second, shared = verdicts(result(row(1), row(2, cpu_ratio)))
    assert first == f"2 workers over 1: CPU time of a request {cpu_ratio:.2f}, at most 1.15: {word}"
    assert second == "2 workers over 1: throughput not measured (2 cores, expected at least 4)"
    assert shared == (
        "1 worker beside others that keep the processors busy: CPU time of a request 1.25, for a machine that is shared"
    )
    assert verdicts(result(row(1), row(2, rate_ratio=1.8)))[1].endswith("throughput 1.80, at least 1.7 at 2: holds")


def test_throughput_is_told_on_enough_processors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [worker_costs._Turn(100.0, 0.01, 500.0, 0, (True,))]
    faster = [replace(turns[0], cpu_s=0.012, rate=900.0)]
    for processors, told in ((range(2), None), (range(4), 1.8)):
        monkeypatch.setattr(worker_costs, "available_processors", lambda found=processors: tuple(found))
        assert worker_costs._row(2, faster, turns, ()).rate_ratio == told
    assert worker_costs._row(2, faster, turns, ()).cpu_ratio == pytest.approx(1.2)


def test_the_table_has_the_memory_of_all_and_of_a_further_one() -> None:
    table = workers_table(result(row(1), row(2)))
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["memory"] == ["5 MiB", "10 MiB"]
    assert cells["a further one"] == ["1 MiB", "2 MiB"]


def test_a_wrong_answer_makes_the_command_fail() -> None:
    assert result(row(1)).is_right
    assert not result(replace(row(1), wrong_count=1)).is_right
    assert not result(replace(row(1), failed_count=1)).is_right


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["workers", "--turns", "0"]) == 2
    assert "expected --turns and --in-flight of at least 1" in capsys.readouterr().err
