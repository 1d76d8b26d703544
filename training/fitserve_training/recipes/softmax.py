"""Softmax regression: one linear layer over the pixels.

Source: Zhang et al., Dive into Deep Learning, section "Concise Implementation of Softmax Regression".
"""

from __future__ import annotations

from math import prod

from torch import nn

from fitserve_training.config import RunConfig
from fitserve_training.data import images
from fitserve_training.form import Form
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Band, Recipe
from fitserve_training.recipes import images as image_recipes


def build_network(shape: tuple[int, ...], class_count: int) -> nn.Module:
    """Builds one linear layer, weights N(0, 0.01²), biases 0: 784 -> 10 for the recipe's own data."""
    linear = nn.Linear(prod(shape), class_count)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def build_model(_config: RunConfig) -> nn.Module:
    """Builds the network for the recipe's own data."""
    return build_network(image_recipes.SHAPE, image_recipes.CLASS_COUNT)


def for_form(form: Form) -> Recipe:
    """Fits inputs and network to the data."""
    return image_recipes.for_form(form, RECIPE, build_network)


RECIPE = Recipe(
    name="softmax",
    defaults={
        # One thread: the steps are too small to share, and waiting for a busy core costs far more than it gives.
        "threads": 1,
        "lr": 0.1,
        "batch_size": 256,
        "epochs": 10,
        **image_recipes.SETTINGS,
    },
    # Plain descent at the published rate moves a few hundred examples too little in ten epochs.
    presets={image_recipes.OWN: {"optimizer": "adam", "lr": 3e-3, "batch_size": 64, "epochs": 40}},
    preset_for=image_recipes.preset_for,
    choose_data=images.choose,
    data_names=images.NAMES,
    load_data=image_recipes.load_data,
    build_model=build_model,
    objective=Classification(),
    inputs=image_recipes.INPUTS,
    output_name=image_recipes.OUTPUT_NAME,
    for_form=for_form,
    start=image_recipes.start,
    own_data=image_recipes.OWN_DATA,
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
