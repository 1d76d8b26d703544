"""Celsius from a thermometer of unknown unit: 11 readings, a line, gradient descent over all of them at once.

Source: Stevens, Antiga, Viehmann, Deep Learning with PyTorch, chapter "The mechanics of learning", which trains on the
readings times 0.1; here that scaling is inside the model, so that the served model takes raw readings.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.places import Places
from fitserve_training.objectives import Regression
from fitserve_training.recipe import Band, Finish, Recipe, ServedInput
from fitserve_training.reference import largest_gap, line_gradients

CELSIUS = (0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0)
READINGS = (35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4)


class ScaledLine(nn.Module):
    """w · (input_scale · x) + b, from w = 1 and b = 0.

    Args:
        input_scale: Factor on the raw readings; it is part of the model and is not trained.
    """

    def __init__(self, input_scale: float) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.w = nn.Parameter(torch.ones(()))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x_B1: Tensor) -> Tensor:
        """Maps raw readings (B, 1) to degrees Celsius (B, 1)."""
        return self.w * (x_B1 * self.input_scale) + self.b


def choose_data(_name: str, _places: Places) -> str:
    """There is one kind of data: the readings."""
    return "readings"


def load_data(_config: RunConfig, _places: Places) -> DataSet:
    """Gives the 11 readings; there are too few to hold any out, so they are tested on as well."""
    readings = Split((torch.tensor(READINGS).unsqueeze(1),), torch.tensor(CELSIUS).unsqueeze(1))
    return DataSet(
        name="readings",
        source="11 readings of two thermometers (trained and tested on all of them)",
        train=readings,
        held_out=readings,
    )


def build_model(config: RunConfig) -> nn.Module:
    """Builds the line with the factor that `model.input_scale` says."""
    return ScaledLine(float(config.model["input_scale"]))


def parameters(module: nn.Module) -> dict[str, float]:
    """Gives w and b on the scaled readings."""
    return {name: value.detach().double().item() for name, value in module.named_parameters()}


def measure(finish: Finish) -> dict[str, float]:
    """Gives w and b, and how far the three ways to the gradient at w = 1, b = 0 differ on the raw readings."""
    x_N, y_N = (torch.tensor(values, dtype=torch.float64) for values in (READINGS, CELSIUS))
    w, b = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return parameters(finish.model) | {"gradient_gap": largest_gap(line_gradients(w, b, x_N, y_N))}


def draw(finish: Finish, folder: Path) -> None:
    """Draws the fitted line over the raw readings."""
    from fitserve_training.plots import save_figure

    x_N1, y_N1 = finish.data.held_out.inputs[0], finish.data.held_out.targets
    line_x = torch.linspace(x_N1.min().item(), x_N1.max().item(), 50).unsqueeze(1)
    with torch.no_grad():
        line_y = finish.model(line_x)
    with save_figure(folder / "fit.svg") as axes:
        axes.plot(line_x.flatten().tolist(), line_y.flatten().tolist(), label="fitted line")
        axes.plot(x_N1.flatten().tolist(), y_N1.flatten().tolist(), "o", label="readings")
        axes.set_xlabel("reading (Fahrenheit)")
        axes.set_ylabel("temperature (Celsius)")
        axes.legend()


RECIPE = Recipe(
    name="thermometer",
    defaults={
        # One thread: the steps are too small to share, and waiting for a busy core costs far more than it gives.
        "threads": 1,
        "lr": 1e-2,
        "batch_size": 0,
        "epochs": 5000,
        "data.name": "readings",
        "model.input_scale": 0.1,
    },
    choose_data=choose_data,
    data_names=("auto", "readings"),
    load_data=load_data,
    build_model=build_model,
    objective=Regression(),
    inputs=(ServedInput("x", torch.float32, ("batch", 1)),),
    output_name="y",
    bands={
        "readings": (
            Band("train_loss", 2.927646, 2.927650),
            Band("w", 5.3670, 5.3672),
            Band("b", -17.3013, -17.3011),
            Band("gradient_gap", 0.0, 1e-4),
        )
    },
    parameters=parameters,
    measure=measure,
    draw=draw,
    cure="scale the inputs (--set model.input_scale=0.1) or lower the learning rate (--set lr=1e-4)",
)
