"""This checkout against itself, through the command: both servers up, loaded in turns, answers checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.builders import bare_version, linear

from fitserve_benchmarks import serve_pairs
from fitserve_benchmarks.cli import main

pytestmark = pytest.mark.needs_program("h2load")

_THIS = str(Path(__file__).parents[2])


def _compare(folder: Path, pairs: int, *options: str) -> int:
    bare_version(folder / "models", "tiny", 1, linear())
    places = ["--repository", str(folder / "models"), "--models", "tiny", "--output-dir", str(folder / "results")]
    return main(["serve", "--against", _THIS, *places, "--pairs", str(pairs), "--in-flight", "4", *options])


@pytest.mark.slow
def test_two_pairs_are_measured_and_give_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _compare(tmp_path, 2, "--seconds", "0.2") == 0

    document = json.loads((tmp_path / "results" / "serve-against.json").read_text())
    (row,) = document["rows"]
    assert [pair["is_ours_first"] for pair in row["pairs"]] == [True, False]
    assert all(pair[side]["cpu_per_request_s"] > 0 for pair in row["pairs"] for side in ("ours", "other"))
    assert [check["wrong_count"] for check in document["checks"]] == [0, 0]
    assert all(check["checked_count"] > 0 for check in document["checks"])
    assert document["ours"] == document["other"]
    assert "no verdict: fewer than 6 pairs" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_fails_below_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_pairs, "LEAST_RATIO", 1_000.0)  # no checkout is so many times as fast as itself
    assert _compare(tmp_path, 6, "--seconds", "0.1", "--transport", "stock") == 1
    assert "at tiny, batch 1, 4 in flight" in capsys.readouterr().out
