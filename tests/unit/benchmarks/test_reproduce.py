"""Published figures: how they are judged, and the thermometer's, which are quick enough to hold here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fitserve_benchmarks import reproduce as reproduction
from fitserve_benchmarks.reproduce import Figure, divergence_epoch, reproduce, reproduction_table


@pytest.mark.parametrize(
    ("value", "is_inside"),
    [(0.8, True), (0.84, True), (0.79, False), (0.85, False), (None, False), (float("nan"), False)],
)
def test_a_figure_is_inside_its_band_or_not(value: float | None, is_inside: bool) -> None:
    assert Figure("softmax", 0, "test_accuracy", value, 0.8, 0.84).is_inside is is_inside


@pytest.mark.parametrize(
    ("output", "epoch"),
    [("the loss is inf at epoch 11 with lr 0.01", 11), ("epoch 3/40: fine", None), ("nothing", None)],
)
def test_the_epoch_of_a_stopped_run_is_found(output: str, epoch: int | None) -> None:
    assert divergence_epoch(output) == epoch


def test_the_table_says_what_lies_outside() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(reproduction_table([Figure("a", 0, "m", 1.0, 0.0, 2.0), Figure("b", 1, "m", None, 0.0, 2.0)]))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "a 0 m 1 0 to 2 inside" in lines
    assert "b 1 m none 0 to 2 OUTSIDE" in lines


@pytest.mark.slow
def test_the_thermometer_reaches_its_figures_and_diverges_on_raw_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "SEEDED", ())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    figures = reproduce(tmp_path / "runs", [0], tmp_path / "out")
    assert {"train_loss", "w", "b", "epoch stopped at"} <= {figure.metric for figure in figures}
    assert all(figure.is_inside for figure in figures)
    saved = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert all(figure["is_inside"] for figure in saved["figures"])
