"""What a recipe is: everything that one trained system needs, as plain functions and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_training.config import RunConfig, Scalar
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.form import Form
from fitserve_training.objectives import Objective


@dataclass(frozen=True)
class ServedInput:
    """An input of the served model: a text in `shape` names a dynamic axis, as in ("batch", 1, 28, 28)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Band:
    """Where a metric of the finished run should lie.

    Args:
        metric: A key of the metrics, for example `test_accuracy`.
        low: Smallest value inside.
        high: Largest value inside.
        is_required: Whether a run outside fails; otherwise the band is only reported.
    """

    metric: str
    low: float
    high: float
    is_required: bool = False

    def holds(self, value: float) -> bool:
        """Says whether `value` is inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Finish:
    """The end of a run, from which a recipe makes its own figures and pictures.

    Args:
        config: Settings of the run.
        model: Trained, on the CPU, in evaluation mode.
        data: What it was trained on.
        rows: The lines of metrics.jsonl.
    """

    config: RunConfig
    model: nn.Module
    data: DataSet
    rows: Sequence[Mapping[str, Any]]


def _data_name(data_name: str, _values: Mapping[str, Scalar]) -> str:
    return data_name


def _same_rate(_config: RunConfig) -> Mapping[str, float]:
    return {}


def _same_module(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class Recipe:
    """One system: its data, model, loss, settings and the figures it has to reach.

    Args:
        name: Also the default name of the served model.
        defaults: Changes to RunConfig's defaults, by dotted key; also declares the recipe's own data.* and model.*.
        choose_data: Resolves the name `auto` to the data that will be used.
        data_names: Every value that `data.name` may have.
        load_data: Loads the data that the configuration names.
        build_model: Builds and initialises the model from torch's global generator.
        objective: The loss and the metrics.
        inputs: Inputs of the served model, in the order of its forward.
        output_name: The served model's output.
        presets: Changes to the defaults, by what `preset_for` says: the data's name unless the recipe knows better.
        preset_for: Names the preset, given the data's name and the settings that were asked for.
        bands: Published figures by data name; they hold for the recipe's own settings.
        is_loss_after_epoch: Whether train metrics are those of the parameters that the epoch ends with; otherwise they
            are means over the epoch while it trains.
        parameters: The learned parameters of a model small enough to print.
        rate_factors: Multiples of the learning rate by the beginning of a parameter's name, for a configuration: the
            new head of a pretrained model has more to learn than the rest.
        served: Turns the trained model into the one that is served, preprocessing and link function inside.
        draw: Draws the recipe's own pictures, SVG, into a folder.
        measure: The recipe's own figures of a finished run, which its bands may name.
        for_form: Gives the recipe its final form where inputs, outputs or files depend on the data; without it the
            recipe is the same for all its data.
        start: Puts the weights into a new model that training starts from, where they are not the random ones
            of `build_model`.
        file: The user's Python file that it comes from; empty for one of the catalogue.
        source: What that file held.
        own_data: Kinds of the user's own data that it takes: `images`, `table`, `arrays`, `text`.
        cure: What to change when the loss is not finite.
        tolerance: Overrides the exporter's tolerance, by `atol` and `rtol`.
    """

    name: str
    defaults: Mapping[str, Scalar]
    choose_data: Callable[[str, Places], str]
    data_names: tuple[str, ...]
    load_data: Callable[[RunConfig, Places], DataSet]
    build_model: Callable[[RunConfig], nn.Module]
    objective: Objective
    inputs: tuple[ServedInput, ...]
    output_name: str
    presets: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    preset_for: Callable[[str, Mapping[str, Scalar]], str] = _data_name
    bands: Mapping[str, tuple[Band, ...]] = field(default_factory=dict)
    is_loss_after_epoch: bool = False
    parameters: Callable[[nn.Module], dict[str, float]] | None = None
    rate_factors: Callable[[RunConfig], Mapping[str, float]] = _same_rate
    served: Callable[[nn.Module], nn.Module] = _same_module
    draw: Callable[[Finish, Path], None] | None = None
    measure: Callable[[Finish], dict[str, float]] | None = None
    for_form: Callable[[Form], Recipe] | None = None
    start: Callable[[RunConfig, nn.Module, DataSet], None] | None = None
    own_data: tuple[str, ...] = ()
    file: str = ""
    source: bytes = field(default=b"", repr=False)

    @property
    def address(self) -> str:
        """What finds the recipe again: its file, or its name in the catalogue."""
        return self.file or self.name

    @property
    def is_compared_with_constant(self) -> bool:
        """Whether a run must beat the constant prediction; the lessons are held to their own figures instead."""
        return bool(self.own_data or self.file)

    cure: str = "lower the learning rate (--set lr=…)"
    tolerance: Mapping[str, float] | None = None

    def task(self, data: DataSet) -> Task:
        """Gives the task that Evaluate scores the served model by."""
        scores = {
            TaskKind.CLASSIFICATION: Scores.LOGITS,
            TaskKind.MULTI_LABEL: Scores.PROBABILITIES,
            TaskKind.REGRESSION: Scores.VALUES,
        }
        return Task(self.objective.kind, self.output_name, scores[self.objective.kind], data.class_names)
