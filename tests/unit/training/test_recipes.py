"""The small recipes reach their published figures, and draw what they promise."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from fitserve_training import rundir
from fitserve_training.config import Scalar
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.runs import open_run


def trained(recipe: str, run_dir: Path, **changes: Scalar) -> dict[str, Any]:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    train(Request(recipe, run_dir, changes=dotted), lambda _line: None)
    summary: dict[str, Any] = json.loads((run_dir / rundir.SUMMARY).read_text())
    return summary


def losses(run_dir: Path) -> list[float]:
    return [row["train_loss"] for row in rundir.read_lines(run_dir / rundir.METRICS)]


@pytest.mark.parametrize(
    ("recipe", "medians"), [("linreg-scratch", (3.76e-2, 1.37e-4, 5.1e-5)), ("linreg", (2.42e-4, 1.015e-4, 1.02e-4))]
)
def test_linear_regression_has_the_published_medians(
    recipe: str, medians: tuple[float, float, float], tmp_path: Path
) -> None:
    runs = []
    for seed in range(3):
        summary = trained(recipe, tmp_path / str(seed), seed=seed)
        assert summary["parameter_error"] < 2e-3
        assert all(band["is_inside"] for band in summary["published"]), summary["published"]
        runs.append(losses(tmp_path / str(seed)))

    found = [statistics.median(epoch) for epoch in zip(*runs, strict=True)]

    # What is left of the start varies by tens of percent; the last epoch has only the noise of 1,000 examples.
    assert found[:2] == pytest.approx(medians[:2], rel=0.5)
    assert found[2] == pytest.approx(medians[2], rel=0.1)


def test_line_ends_where_the_closed_form_says(tmp_path: Path) -> None:
    summary = trained("line", tmp_path / "line", seed=5)

    assert summary["closed_form_error"] < 1e-5
    names = {path.name for path in (tmp_path / "line").glob("optimizer*.svg")}
    assert len(names) == 9
    assert {"optimizers.svg", "optimizer-lbfgs.svg"} <= names


def test_line_arrives_after_3000_epochs(tmp_path: Path) -> None:
    summary = trained("line", tmp_path / "line", epochs=3000)
    assert summary["parameters"] == pytest.approx({"w": 2.0, "b": 0.0, "prediction_at_4": 8.0}, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"momentum": 0.5, "nesterov": True}, {"optimizer": "lbfgs"}])
def test_line_takes_other_optimizers(changes: dict[str, Scalar], tmp_path: Path) -> None:
    summary = trained("line", tmp_path / "line", epochs=60, **changes)
    assert "closed_form_error" not in summary
    assert summary["published"] == []
    assert summary["train_loss"] < 1.0


@pytest.mark.parametrize("backward", ["autograd", "own"])
def test_two_layer_prints_twenty_losses(backward: str, tmp_path: Path) -> None:
    summary = trained("two-layer", tmp_path / "two", model__backward=backward)

    assert len(losses(tmp_path / "two")) == 20
    assert summary["gradient_gap"] < 1e-4
    assert 0.009 < summary["last_to_first_loss"] < 0.034
    assert open_run(tmp_path / "two").module(torch.zeros(2, 1000)).shape == (2, 10)


def test_two_layer_knows_two_backwards(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.backward': expected autograd or own, got 'mine'"):
        trained("two-layer", tmp_path / "two", model__backward="mine")
    assert not list(tmp_path.iterdir())


def test_thermometer_diverges_on_raw_readings_at_epoch_11(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"the loss is inf at epoch 11 .*scale the inputs"):
        trained("thermometer", tmp_path / "t", model__input_scale=1.0)
