"""A small convolutional network for the user's own pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.own.kinds import IMAGES, kind_of
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.recipes import own_data

_WIDTHS = (32, 64, 128)
_SMALLEST = 8


def load_data(config: RunConfig, _places: Places) -> DataSet:
    """Loads the pictures at `data.name`.

    Raises:
        UsageError: they cannot be read, or are no pictures (N, C, H, W) of at least 8 pixels a side.
    """
    is_folder = kind_of(Path(str(config.data["name"]))) == IMAGES
    if is_folder and int(config.data["image_size"]) < _SMALLEST:
        raise UsageError(f"setting 'data.image_size': expected at least {_SMALLEST}, got {config.data['image_size']}")
    data = own_data.load_data(config, "image")
    (shape,) = data.train.input_shapes
    if len(shape) != 3 or min(shape[1:]) < _SMALLEST:
        raise UsageError(
            f"data {data.name}: expected pictures (N, C, H, W) of at least {_SMALLEST} pixels, got {shape}"
        )
    return data


def build_model(_config: RunConfig, form: Form) -> nn.Module:
    """Builds three blocks of convolution, normalisation, ReLU and pooling, a mean over places, linear."""
    (shape,) = form.input_shapes
    layers: list[nn.Module] = []
    for width, next_width in zip((shape[0], *_WIDTHS[:-1]), _WIDTHS, strict=True):
        convolution = nn.Conv2d(width, next_width, kernel_size=3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(next_width), nn.ReLU(), nn.MaxPool2d(2)]
    output_count = own_data.ending(form).output_count
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], output_count))
    return own_data.Standardised(nn.Sequential(*layers, *head), (shape[0], 1, 1), output_count)


def for_form(form: Form) -> Recipe:
    """Fits inputs, outputs and loss to the data."""
    end = own_data.ending(form)
    recipe = replace(
        RECIPE,
        build_model=partial(build_model, form=form),
        objective=end.objective,
        inputs=(ServedInput("image", torch.float32, ("batch", *form.input_shapes[0])),),
        output_name=end.output_name,
    )
    return replace(recipe, served=own_data.Sigmoid) if end.is_multi_label else recipe


RECIPE = Recipe(
    name="convnet",
    defaults={**own_data.SETTINGS, "lr": 2e-3, "epochs": 20},
    choose_data=own_data.choose_data,
    data_names=(),
    load_data=load_data,
    build_model=lambda _config: nn.Identity(),
    objective=Classification(),
    inputs=(ServedInput("image", torch.float32, ("batch",)),),
    output_name="logits",
    for_form=for_form,
    start=own_data.start,
    own_data=("images", "arrays"),
)
