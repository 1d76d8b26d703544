"""Pairs of turns of two checkouts: order, ratios, verdict and report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fitserve_benchmarks.serve_against_report import against_lines, print_against_report
from fitserve_benchmarks.serve_load import Turn
from fitserve_benchmarks.serve_pairs import (
    AgainstResult,
    PairedRow,
    SideTurn,
    TurnPair,
    is_ours_first,
    make_side_turn,
)
from fitserve_benchmarks.serve_rows import Check


def _row(*ratios: float, failed: int = 0, in_flight: int = 8) -> PairedRow:
    other = SideTurn(1_000.0, 2e-4, 1e-3, failed)
    pairs = [TurnPair(SideTurn(1_000.0 * ratio, 1e-4, 1e-3, 0), other, True) for ratio in ratios]
    return PairedRow("lenet", 1, in_flight, tuple(pairs))


def _result(*rows: PairedRow, checked: int = 10, wrong: int = 0) -> AgainstResult:
    environment = {"processor": "a processor", "usable_processors": [0, 1], "load_average": [0.5, 0.4, 0.3]}
    settings = {"pairs": len(rows[0].pairs), "turn_s": 2.0, "thread_count": 1, "load_source": "h2load"}
    ours = {"commit": "1" * 40, "subject": "after", "is_changed": True}
    other = {"commit": "2" * 40, "subject": "before", "is_changed": False}
    checks = [Check("lenet", 1, "this checkout", checked, wrong)]
    return AgainstResult({**settings, "transport": "fast"}, environment, (0.6, 0.5, 0.4), ours, other, rows, checks)


def test_who_begins_changes_from_pair_to_pair() -> None:
    turns = [side for number in range(4) for side in ("AB" if is_ours_first(number) else "BA")]
    assert "".join(turns) == "ABBAABBA"


@given(st.integers(1, 200))
def test_a_steady_drift_favours_neither_side(quads: int) -> None:
    """Over an even number of pairs, both sides have the same mean place in the order."""
    places: dict[bool, list[int]] = {True: [], False: []}
    for number in range(2 * quads):
        for place, is_ours in enumerate((True, False) if is_ours_first(number) else (False, True)):
            places[is_ours].append(2 * number + place)
    assert sum(places[True]) == sum(places[False])


def test_a_turn_counts_the_processor_time_of_its_warm_up_with_its_calls() -> None:
    turn = make_side_turn(Turn(100.0, np.array([1e-3, 3e-3, 2e-3]), 4, (), 0.1, 2.3), 0.46)
    assert turn == SideTurn(100.0, pytest.approx(0.002), 2e-3, 4)


def test_a_ratio_is_ours_against_the_turn_beside_it() -> None:
    row = _row(1.25, 0.5, 2.0)
    assert [pair.ratio for pair in row.pairs] == [1.25, 0.5, 2.0]
    assert row.median_ratio == 1.25


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((0.1,) * 5, "too few pairs"),
        ((0.94,) * 6, "slower"),
        ((0.95,) * 6, "ok"),
        # Of 15 pairs the 12th smallest ratio is the interval's upper end.
        ((0.9,) * 12 + (0.96,) * 3, "slower"),
        ((0.9,) * 11 + (0.96,) * 4, "ok"),
        ((1.2,) * 15, "ok"),
    ],
)
def test_a_level_fails_where_its_whole_interval_lies_below_the_bound(ratios: tuple[float, ...], verdict: str) -> None:
    row = _row(*ratios)
    assert row.verdict == verdict
    assert _result(row).is_slower == (verdict == "slower")
    assert _result(_row(*(1.0,) * len(ratios)), row).is_slower == (verdict == "slower")


def test_only_right_answers_and_no_slower_level_pass() -> None:
    good = _row(*(1.0,) * 6)
    assert _result(good).has_passed
    assert not _result(_row(*(0.5,) * 6)).has_passed
    assert not _result(good, wrong=1).has_passed
    assert not _result(_row(*(1.0,) * 6, failed=1)).has_passed
    # A check that saw no answer proves nothing.
    assert not _result(good, checked=0).has_passed


def test_the_report_names_commits_figures_and_the_level_that_failed() -> None:
    console = Console(width=1000, record=True)
    print_against_report(_result(_row(*(1.01,) * 15), _row(*(0.8,) * 15, in_flight=128)), console)
    text = console.export_text()
    assert "8 1,010 1,000 1.010 1.010–1.010 100 µs 200 µs ok" in " ".join(text.split())
    assert "ours:  111111111111 with changes after\nother: 222222222222 before\n" in text
    assert "FAILED: the whole interval lies below 0.95 at lenet, batch 1, 128 in flight\n" in text
    assert "(values 4 and 12 of 15 in order)" in text
    assert "10 of 10 sampled right" in text


def test_too_few_pairs_are_no_verdict() -> None:
    assert "no verdict: fewer than 6 pairs have no interval at 95 %; give --pairs 15" in against_lines(
        _result(_row(1.0, 1.0))
    )
    assert "no level's whole interval lies below 0.95" in against_lines(_result(_row(*(1.0,) * 6)))


def test_a_result_is_written_with_ratios_interval_and_verdict(tmp_path: Path) -> None:
    _result(_row(*(0.5, 0.25) * 3), _row(1.0, 1.0)).save(tmp_path / "new" / "against.json")
    document = json.loads((tmp_path / "new" / "against.json").read_text())
    first, second = document["rows"]
    assert first["ratios"] == [0.5, 0.25] * 3
    assert first["interval"] == {"estimate": 0.375, "low": 0.25, "high": 0.5}
    assert (first["interval_rank"], first["verdict"]) == (1, "slower")
    assert first["pairs"][0]["ours"]["cpu_per_request_s"] == 1e-4
    assert (second["interval"], second["verdict"]) == (None, "too few pairs")
    assert document["ours"]["commit"] == "1" * 40
    assert document["environment"]["processor"] == "a processor"
