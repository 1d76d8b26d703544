"""A small network of fully connected layers for the user's own tables and arrays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod

import torch
from torch import nn

from fitserve_contract.column_encoding import CODES, NUMBERS
from fitserve_contract.columns import COLUMNS_FILE, TableColumns
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.form import Form
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.recipes import own_data
from fitserve_training.recipes.table_network import TableNetwork


def load_data(config: RunConfig, _places: Places) -> DataSet:
    """Loads the table or the arrays at `data.name`."""
    return own_data.load_data(config, "x")


def build_model(config: RunConfig, form: Form) -> nn.Module:
    """Builds flatten, `model.layers` times linear and ReLU, linear; between scalings."""
    columns = _columns(form)
    if columns is not None and (not columns.is_joined or any(column.has_missing for column in columns.columns)):
        feature_count = TableNetwork.feature_count(columns)
        return TableNetwork(columns, _layers(config, form, feature_count), own_data.ending(form).output_count)
    (shape,) = form.input_shapes
    return own_data.Standardised(_layers(config, form, prod(shape)), shape, own_data.ending(form).output_count)


def start(config: RunConfig, model: nn.Module, data: DataSet) -> None:
    """Takes the scalings from the training examples."""
    if isinstance(model, TableNetwork):
        model.take_scalings(data)
    else:
        own_data.start(config, model, data)


def _layers(config: RunConfig, form: Form, feature_count: int) -> nn.Module:
    sizes = [feature_count, *[int(config.model["hidden_size"])] * int(config.model["layers"])]
    layers: list[nn.Module] = [nn.Flatten()]
    for width, next_width in pairwise(sizes):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], own_data.ending(form).output_count))


def _columns(form: Form) -> TableColumns | None:
    return TableColumns.from_bytes(form.files[COLUMNS_FILE]) if COLUMNS_FILE in form.files else None


def _inputs(form: Form) -> tuple[ServedInput, ...]:
    """Names the network's inputs: `x`, or numbers and codes of a table that is served column by column."""
    columns = _columns(form)
    names = ["x"]
    if columns is not None and not columns.is_joined:
        names = [name for name, those in ((NUMBERS, columns.numbers), (CODES, columns.categories)) if those]
    specs = zip(names, form.input_dtypes, form.input_shapes, strict=True)
    return tuple(ServedInput(name, dtype, ("batch", *shape)) for name, dtype, shape in specs)


def for_form(form: Form) -> Recipe:
    """Fits inputs, outputs and loss to the data."""
    end = own_data.ending(form)
    recipe = replace(
        RECIPE,
        build_model=partial(build_model, form=form),
        objective=end.objective,
        inputs=_inputs(form),
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
    start=start,
    own_data=("table", "arrays"),
)
