"""What the image recipes have in common: pictures or arrays as input `image`, and logits over the classes.

Their own data has inputs of (B, 1, 28, 28) in 0..1 and 10 classes; the user's has what it has, between scalings that
bring it to mean 0 and standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from fitserve_training.config import RunConfig, Scalar
from fitserve_training.data import images
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.recipes import own_data

SHAPE = (1, 28, 28)
CLASS_COUNT = 10
INPUTS = (ServedInput("image", torch.float32, ("batch", *SHAPE)),)
OUTPUT_NAME = "logits"
OWN = "own"
"""The preset for the user's data, of which there is less than the published settings are made for."""

OWN_DATA = ("images", "arrays")
SETTINGS: Mapping[str, Scalar] = {
    "data.image_size": SHAPE[-1],
    **{key: own_data.SETTINGS[key] for key in ("data.hold_out", "data.task", "data.skip_bad")},
}


def preset_for(data_name: str, _values: Mapping[str, Scalar]) -> str:
    """Returns the data's name, or `own` for a path."""
    return data_name if data_name in images.NAMES else OWN


def load_data(config: RunConfig, places: Places, smallest: int = 1) -> DataSet:
    """Loads the images that `data.name` says, a name or the path of the user's pictures or arrays.

    Args:
        config: Of the run.
        places: Where named data may be.
        smallest: Pixels a side that the network needs; above 1, arrays have to be pictures (N, C, H, W).

    Raises:
        UsageError: data that cannot be read, that has no classes or is too small.
    """
    name = str(config.data["name"])
    if name in images.NAMES:
        return images.load(name, places)
    data = own_data.load_data(config, INPUTS[0].name)
    if not data.class_names or data.train.targets.ndim != 1:
        raise UsageError(
            f"data {name}: expected one class for each example, got {data.note}; the recipes convnet and mlp take "
            "other tasks"
        )
    (shape,) = data.train.input_shapes
    if smallest > 1 and (len(shape) != 3 or min(shape[1:]) < smallest):
        raise UsageError(
            f"data {name}: expected pictures (N, C, H, W) of at least {smallest} pixels a side, got (N, "
            f"{', '.join(map(str, shape))})"
        )
    return data


def for_form(form: Form, recipe: Recipe, build_network: Callable[[tuple[int, ...], int], nn.Module]) -> Recipe:
    """Fits inputs and network to the data.

    Args:
        form: Of the data.
        recipe: To be fitted.
        build_network: Builds the network for the shape of an example and the number of classes.
    """
    (shape,) = form.input_shapes
    return replace(
        recipe,
        build_model=partial(_build, network=build_network, shape=shape, class_count=len(form.class_names)),
        inputs=(replace(INPUTS[0], shape=("batch", *shape)),),
    )


def _build(
    config: RunConfig, network: Callable[[tuple[int, ...], int], nn.Module], shape: tuple[int, ...], class_count: int
) -> nn.Module:
    model = network(shape, class_count)
    if config.data["name"] in images.NAMES:
        return model
    scaled = (shape[0], 1, 1) if len(shape) == 3 else shape
    return own_data.Standardised(model, scaled, class_count)


def start(config: RunConfig, model: nn.Module, data: DataSet) -> None:
    """Takes the scalings from the user's training examples."""
    if isinstance(model, own_data.Standardised):
        own_data.start(config, model, data)
