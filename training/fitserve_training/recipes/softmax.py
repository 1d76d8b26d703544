"""Softmax regression: one linear layer over the pixels.

Source: Zhang et al., Dive into Deep Learning, section "Concise Implementation of Softmax Regression".
"""

from __future__ import annotations

from torch import nn

from fitserve_training.config import RunConfig
from fitserve_training.data import images
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Band, Recipe
from fitserve_training.recipes.images import INPUTS, OUTPUT_NAME, load_data


def build_model(_config: RunConfig) -> nn.Module:
    """Builds 784 -> 10, weights N(0, 0.01²), biases 0."""
    linear = nn.Linear(28 * 28, 10)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


RECIPE = Recipe(
    name="softmax",
    defaults={
        # One thread: the steps are too small to share, and waiting for a busy core costs far more than it gives.
        "threads": 1,
        "lr": 0.1,
        "batch_size": 256,
        "epochs": 10,
    },
    choose_data=images.choose,
    data_names=images.NAMES,
    load_data=load_data,
    build_model=build_model,
    objective=Classification(),
    inputs=INPUTS,
    output_name=OUTPUT_NAME,
    bands={
        "fashion_mnist": (
            Band("train_loss", 0.444, 0.450),
            Band("train_accuracy", 0.845, 0.851),
            Band("test_accuracy", 0.80, 0.84),
            Band("train_loss", 0.0, 0.5, is_required=True),
            Band("train_accuracy", 0.7, 1.0, is_required=True),
            Band("test_accuracy", 0.7, 1.0, is_required=True),
        ),
    },
)
