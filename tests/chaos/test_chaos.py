"""Servers under every kind of fault lose no call and give no wrong answer; and a wrong answer would be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fitserve_benchmarks.chaos import run_chaos
from fitserve_benchmarks.chaos_load import MODEL, VerifiedLoad
from fitserve_client import Prediction


@pytest.mark.slow
def test_every_kind_of_fault_once_loses_nothing(tmp_path: Path) -> None:
    result = run_chaos(tmp_path, 3, 0, lambda _: None, caller_count=2)

    assert result.tally.failed == []
    assert result.tally.wrong == []
    assert result.is_right
    assert sorted(result.faults.values()) == [1] * 15
    assert result.tally.answer_count > 50


def test_an_answer_of_another_row_version_or_shape_is_seen() -> None:
    load = VerifiedLoad(["127.0.0.1:1"], 1, 0)
    load.known_versions, load.lowest_version = {1, 2, 4}, 2
    rows = np.array([(5, 0), (6, 0)], np.float32)

    def problem(version: int, answer: list[list[float]]) -> str:
        return load._problem(rows, Prediction(MODEL, version, {"y": np.array(answer, np.float32)}), 2)

    assert problem(2, [[10, 2], [12, 2]]) == ""
    assert "expected [[10.0, 2.0], [12.0, 2.0]]" in problem(2, [[12, 2], [10, 2]])
    assert problem(2, [[10, 2], [12, 4]])
    assert problem(2, [[10, 2]])
    assert "answer by version 3" in problem(3, [[10, 3], [12, 3]])
    assert "answer by version 1" in problem(1, [[10, 1], [12, 1]])
