"""The first request to a server is measured on servers that have just started, and held against its bound."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import pytest

from fitserve_benchmarks import cli
from fitserve_benchmarks.first_request import FirstPlan, FirstResult, Start, run_first


def result(*ratios: float) -> FirstResult:
    starts = tuple(Start(ratio * 1e-4, 1e-4, 2e-4, True) for ratio in ratios)
    return FirstResult({"model": "m"}, {}, starts)


@pytest.mark.slow
def test_each_start_has_a_first_a_later_and_a_paused_request_with_right_answers(tmp_path: Path) -> None:
    builders.bare_version(tmp_path / "repository", "m", 1, builders.linear())
    lines: list[str] = []
    measured = run_first(FirstPlan(tmp_path / "repository", "m", starts=1), lines.append)
    assert measured.is_right
    assert lines == [f"start 1 of 1: {measured.ratio:.2f}"]
    assert all(min(start.first_s, start.later_s, start.paused_s) > 0 for start in measured.starts)
    measured.save(tmp_path / "first.json")
    assert json.loads((tmp_path / "first.json").read_text())["starts"][0]["is_right"] is True


@pytest.mark.parametrize(
    ("ratios", "ratio", "word"), [((1.0, 1.5, 9.0), "1.50", "holds"), ((1.6, 1.6), "1.60", "missed")]
)
def test_the_median_of_the_starts_is_held_against_the_bound(ratios: tuple[float, ...], ratio: str, word: str) -> None:
    text = result(*ratios).text()
    assert f"ratio {ratio}, at most 1.5: {word}" in text
    assert text.endswith("on the same servers 2.00")


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    builders.bare_version(tmp_path / "repository", "m", 1, builders.linear())
    with pytest.raises(OSError, match="expected to be ready, ended with exit code 2"):
        run_first(FirstPlan(tmp_path / "repository", "m", starts=1, transport="neither"), lambda _: None)


def test_no_starts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["first-request", "--starts", "0"]) == 2
    assert "--starts: expected at least 1, got 0" in capsys.readouterr().err
