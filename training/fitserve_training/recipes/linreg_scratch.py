"""Linear regression from its formulas: x·w + b, half the squared error, and plain gradient descent.

The loss is the batch's mean, which is the published sum with an update that divides by the batch size.

Source: Zhang et al., Dive into Deep Learning, section "Linear Regression Implementation from Scratch".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig
from fitserve_training.objectives import Regression
from fitserve_training.recipe import Band, Finish, Recipe, ServedInput
from fitserve_training.recipes import linreg


class HandWrittenLine(nn.Module):
    """x·w + b, from w ~ N(0, 0.01²) and b = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 1) * 0.01)
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x_B2: Tensor) -> Tensor:
        """Maps (B, 2) to (B, 1)."""
        return x_B2 @ self.w + self.b


def build_model(_config: RunConfig) -> nn.Module:
    """Builds 2 -> 1."""
    return HandWrittenLine()


def parameters(module: nn.Module) -> dict[str, float]:
    """Gives w and b, and how far each is from the law."""
    assert isinstance(module, HandWrittenLine)
    return linreg.distances(module.w, module.b)


def measure(finish: Finish) -> dict[str, float]:
    """Gives the largest distance of w and b from the law."""
    return linreg.largest_error(parameters(finish.model))


RECIPE = Recipe(
    name="linreg-scratch",
    defaults=linreg.RECIPE.defaults,
    choose_data=linreg.choose_data,
    data_names=linreg.RECIPE.data_names,
    load_data=linreg.load_data,
    build_model=build_model,
    objective=Regression(factor=0.5),
    inputs=(ServedInput("x", torch.float32, ("batch", 2)),),
    output_name="y",
    bands={"synthetic": (Band("train_loss", 4.5e-5, 5.6e-5), Band("parameter_error", 0.0, 2e-3))},
    is_loss_after_epoch=True,
    parameters=parameters,
    measure=measure,
)
