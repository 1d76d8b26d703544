"""A small network of fully connected layers for the user's own tables and arrays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod

import torch
from torch import nn

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.form import Form
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.recipes import own_data


def load_data(config: RunConfig, _places: Places) -> DataSet:
    """Loads the table or the arrays at `data.name`."""
    return own_data.load_data(config, "x")


def build_model(config: RunConfig, form: Form) -> nn.Module:
    """Builds flatten, `model.layers` times linear and ReLU, linear; between scalings."""
    (shape,), size = form.input_shapes, int(config.model["hidden_size"])
    sizes = [prod(shape), *[size] * int(config.model["layers"])]
    layers: list[nn.Module] = [nn.Flatten()]
    for width, next_width in pairwise(sizes):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    output_count = own_data.ending(form).output_count
    network = nn.Sequential(*layers, nn.Linear(sizes[-1], output_count))
    return own_data.Standardised(network, shape, output_count)


def for_form(form: Form) -> Recipe:
    """Fits inputs, outputs and loss to the data."""
    end = own_data.ending(form)
    recipe = replace(
        RECIPE,
        build_model=partial(build_model, form=form),
        objective=end.objective,
        inputs=(ServedInput("x", torch.float32, ("batch", *form.input_shapes[0])),),
        output_name=end.output_name,
    )
    return replace(recipe, served=own_data.Sigmoid) if end.is_multi_label else recipe


RECIPE = Recipe(
    name="mlp",
    defaults={**own_data.SETTINGS, "threads": 1, "lr": 3e-3, "epochs": 60, "model.layers": 2, "model.hidden_size": 64},
    choose_data=own_data.choose_data,
    data_names=(),
    load_data=load_data,
    build_model=lambda _config: nn.Identity(),
    objective=Classification(),
    inputs=(ServedInput("x", torch.float32, ("batch",)),),
    output_name="logits",
    for_form=for_form,
    start=own_data.start,
    own_data=("table", "arrays"),
)
