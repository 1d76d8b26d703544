"""A run that ends worse than a constant prediction is stopped; one that is no better is told so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fitserve_training.cli import main
from fitserve_training.constant import Comparison, ConstantPrediction, compare_with_constant
from fitserve_training.data.dataset import Split
from fitserve_training.errors import RunStoppedError
from fitserve_training.objectives import Classification, MultiLabel, Objective, Regression


def x_and(targets: Tensor) -> Split:
    return Split((torch.zeros(len(targets), 3),), targets)


@pytest.mark.parametrize(
    ("objective", "targets", "constant"),
    [
        (Classification(), torch.tensor([0, 0, 0, 1]), torch.tensor([0.75, 0.25]).log()),
        (MultiLabel(2), torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]]).bool(), torch.tensor([0.25, 0.5]).logit()),
        (Regression(), torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([3.0])),
    ],
)
def test_the_constant_is_the_best_one(objective: Objective, targets: Tensor, constant: Tensor) -> None:
    compared = compare_with_constant(ConstantPrediction(constant), objective, x_and(targets), seed=0)

    assert compared is not None
    assert compared.constant_loss == pytest.approx(compared.loss, rel=1e-5)
    shifted = ConstantPrediction(constant + torch.linspace(0.2, 0.4, len(constant)))
    worse = compare_with_constant(shifted, objective, x_and(targets), seed=0)
    assert worse is not None
    assert worse.loss > worse.constant_loss


def test_outputs_of_another_shape_are_not_compared() -> None:
    class NormalLoss(Regression):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.gaussian_nll_loss(outputs[:, :1], targets, outputs[:, 1:].exp())

        def sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
            return super().sums(outputs[:, :1], targets, loss)

    split = x_and(torch.tensor([[1.0], [2.0]]))
    assert compare_with_constant(nn.Linear(3, 2), NormalLoss(), split, seed=0) is None


@pytest.mark.parametrize(("loss", "constant_loss"), [(2.01, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)])
def test_above_twice_the_constant_stops(loss: float, constant_loss: float) -> None:
    with pytest.raises(RunStoppedError, match="--set lr="):
        Comparison(loss, constant_loss).check()


@pytest.mark.parametrize(
    ("loss", "constant_loss", "is_warned"),
    [(1.99, 1.0, True), (1.0, 1.0, True), (0.5, 1.0, False), (1e-12, 0.0, False)],
)
def test_no_better_than_the_constant_warns(loss: float, constant_loss: float, is_warned: bool) -> None:
    assert bool(Comparison(loss, constant_loss).check()) is is_warned


DIVERGES = """
import torch
from torch import nn

def recipe():
    x = torch.randn(200, 4)
    return nn.Linear(4, 1), (x, x[:, :1] + 5), nn.MSELoss(), {"lr": LR, "epochs": 2, "compile": "off"}
"""


def test_a_run_that_diverges_ends_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text(DIVERGES.replace("LR", "10"))

    assert main([str(file), "--run-dir", str(tmp_path / "run")]) == 1
    assert "constant prediction" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_softmax_that_diverges_on_digits_ends_with_exit_code_1(tmp_path: Path) -> None:
    arguments = ["softmax", "--data", "digits", "--set", "lr=1e6", "--set", "epochs=1", "--compile", "off"]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 1
