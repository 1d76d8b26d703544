"""Linear regression with the library's parts: y = x·[2, -3.4] + 4.2 + noise.

Source: Zhang et al., Dive into Deep Learning, section "Concise Implementation of Linear Regression".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.data.synthetic import load_linear
from fitserve_training.objectives import Regression
from fitserve_training.recipe import Band, Finish, Recipe, ServedInput

TRUE_WEIGHTS = (2.0, -3.4)
TRUE_BIAS = 4.2


def choose_data(_name: str, _places: Places) -> str:
    """There is one kind of data: drawn from the law."""
    return "synthetic"


def load_data(config: RunConfig, _places: Places) -> DataSet:
    """Draws the examples; the root seed decides them."""
    noise_sd, example_count = float(config.data["noise_sd"]), int(config.data["example_count"])
    return load_linear(TRUE_WEIGHTS, TRUE_BIAS, noise_sd, example_count, config.seed)


def build_model(_config: RunConfig) -> nn.Module:
    """Builds 2 -> 1, weights N(0, 0.01²), bias 0."""
    linear = nn.Linear(2, 1)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def parameters(module: nn.Module) -> dict[str, float]:
    """Gives weights and bias, and how far each is from the law."""
    assert isinstance(module, nn.Linear)
    return distances(module.weight, module.bias)


def distances(weight: Tensor, bias: Tensor) -> dict[str, float]:
    """Gives two weights and a bias, and how far each is from the law."""
    w_1, w_2 = weight.detach().double().flatten().tolist()
    b = bias.detach().double().item()
    errors = {"w1_error": w_1 - TRUE_WEIGHTS[0], "w2_error": w_2 - TRUE_WEIGHTS[1], "b_error": b - TRUE_BIAS}
    return {"w1": w_1, "w2": w_2, "b": b} | errors


def largest_error(learned: Mapping[str, float]) -> dict[str, float]:
    """Gives the largest distance from the law."""
    return {"parameter_error": max(abs(value) for key, value in learned.items() if key.endswith("_error"))}


def measure(finish: Finish) -> dict[str, float]:
    """Gives the largest distance of weights and bias from the law."""
    return largest_error(parameters(finish.model))


RECIPE = Recipe(
    name="linreg",
    defaults={
        # One thread: the steps are too small to share, and waiting for a busy core costs far more than it gives.
        "threads": 1,
        "lr": 0.03,
        "batch_size": 10,
        "epochs": 3,
        "data.name": "synthetic",
        "data.example_count": 1000,
        "data.noise_sd": 0.01,
    },
    choose_data=choose_data,
    data_names=("auto", "synthetic"),
    load_data=load_data,
    build_model=build_model,
    objective=Regression(),
    inputs=(ServedInput("x", torch.float32, ("batch", 2)),),
    output_name="y",
    bands={"synthetic": (Band("train_loss", 9.2e-5, 1.16e-4), Band("parameter_error", 0.0, 2e-3))},
    is_loss_after_epoch=True,
    parameters=parameters,
    measure=measure,
)
