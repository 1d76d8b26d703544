"""What the recipes for the user's own data share: settings, the task that the data says, the layers around a network.

Shapes: N examples of a batch, D values of an example, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig, Scalar
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.moments import moments
from fitserve_training.data.own.arrays import load_arrays
from fitserve_training.data.own.kinds import ARRAYS, IMAGES, kind_of
from fitserve_training.data.own.picture_files import BICUBIC
from fitserve_training.data.own.pictures import load_pictures
from fitserve_training.data.own.table_settings import TableSettings
from fitserve_training.data.own.tables import load_table
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.objectives import Classification, MultiLabel, Objective, Regression

SETTINGS: Mapping[str, Scalar] = {
    "optimizer": "adam",
    "batch_size": 64,
    "data.hold_out": 0.2,
    "data.label": "",
    "data.task": "auto",
    "data.categories": "",
    "data.drop": "",
    "data.image_size": 32,
    "data.skip_bad": False,
}


def choose_data(_name: str, _places: Places) -> str:
    """There is no data but the user's own.

    Raises:
        UsageError: none was named.
    """
    raise UsageError("expected your own data: --data images/, --data table.csv --set data.label=COLUMN or --data x.npz")


def load_data(config: RunConfig, input_name: str, resample: int = BICUBIC) -> DataSet:
    """Loads the data at the path `data.name`.

    Args:
        config: Of the run.
        input_name: Of the served model.
        resample: Pillow's number of the filter that resizes pictures.

    Raises:
        UsageError: it is not there or not as it should be; the message names file and place.
    """
    path, share = Path(str(config.data["name"])), float(config.data["hold_out"])
    if not 0 < share < 1:
        raise UsageError(f"setting 'data.hold_out': expected a share above 0 and below 1, got {share:g}")
    kind = kind_of(path)
    if kind == IMAGES:
        size, is_bad_skipped = int(config.data["image_size"]), bool(config.data["skip_bad"])
        return load_pictures(path, size, share, config.seed, is_bad_skipped, resample)
    if kind == ARRAYS:
        return load_arrays(path, input_name, str(config.data["task"]), share, config.seed)
    label, task, categories, drop = (str(config.data[key]) for key in ("label", "task", "categories", "drop"))
    return load_table(path, TableSettings(label, task, share, config.seed, categories, drop))


@dataclass(frozen=True)
class Ending:
    """What follows from the targets: the objective, the number of outputs K, the served output's name."""

    objective: Objective
    output_count: int
    output_name: str
    is_multi_label: bool = False


def ending(form: Form) -> Ending:
    """Reads the task from the form: no classes mean values; a target per class, any of them; else one of them."""
    if not form.class_names:
        return Ending(Regression(), form.target_shape[0], "y")
    if form.target_shape:
        return Ending(MultiLabel(len(form.class_names)), len(form.class_names), "probabilities", True)
    return Ending(Classification(), len(form.class_names), "logits")


class Standardised(nn.Module):
    """A network between scalings that bring inputs, and real targets, to mean 0 and standard deviation 1.

    The scalings are buffers: they come from the training data, are saved with the weights and are in the served graph.

    Args:
        network: Maps (N, …) to (N, K).
        input_shape: Of the scalings; axes of size 1 share one.
        output_count: K.
    """

    input_mean: Tensor
    input_sd: Tensor
    output_mean: Tensor
    output_sd: Tensor

    def __init__(self, network: nn.Module, input_shape: tuple[int, ...], output_count: int) -> None:
        super().__init__()
        self.network = network
        for name, shape in (("input", input_shape), ("output", (output_count,))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_sd", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Maps raw inputs (N, …) to outputs (N, K) in the targets' own unit."""
        outputs: Tensor = self.network((x - self.input_mean) / self.input_sd)
        return outputs * self.output_sd + self.output_mean


def start(_config: RunConfig, model: nn.Module, data: DataSet) -> None:
    """Takes the scalings from the training examples."""
    assert isinstance(model, Standardised)
    sizes = zip(model.input_mean.shape, data.train.input_shapes[0], strict=True)
    shared = [0] + [axis for axis, (size, found) in enumerate(sizes, start=1) if size == 1 < found]
    set_scale(model.input_mean, model.input_sd, *moments(data.train, shared))
    if not data.class_names:
        scale(model.output_mean, model.output_sd, data.train.targets, [0])


def scale(mean: Tensor, sd: Tensor, values: Tensor, axes: list[int]) -> None:
    """Sets a scaling to the mean and standard deviation of values over some axes."""
    set_scale(mean, sd, values.mean(dim=axes), values.std(dim=axes, correction=0))


def set_scale(mean: Tensor, sd: Tensor, found_mean: Tensor, found_sd: Tensor) -> None:
    """Sets a scaling; what never varies is only shifted."""
    mean.copy_(found_mean.reshape(mean.shape))
    sd.copy_(torch.where(found_sd > 0, found_sd, torch.ones_like(found_sd)).reshape(sd.shape))


class Sigmoid(nn.Module):
    """A model of logits with the sigmoid behind it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, …) to probabilities (N, K)."""
        probabilities: Tensor = self.model(x).sigmoid()
        return probabilities
