"""A pretrained encoder of pictures (ViT, DINOv2, ConvNeXt, ResNet, ...) with a new head for the user's classes.

Served are pictures with values 0..1 as all picture models take them: the checkpoint's rescaling and normalisation are
inside the graph. Shapes: N pictures, C channels, S pixels a side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fitserve_contract.checkpoints import PREPROCESSOR_FILE, Checkpoint
from fitserve_training.config import RunConfig, Scalar
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.data.pretrained import open_weights, told
from fitserve_training.encoders.networks import (
    PICTURES,
    build_network,
    check_kind,
    find_heads,
    load_encoder,
    plain_config,
    shapes_alone,
)
from fitserve_training.encoders.picture_classifier import PictureClassifier
from fitserve_training.encoders.picture_preparation import Preparation, read_preparation
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.objectives import Classification
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.recipes import own_data

ENCODER_FILE = "encoder.json"
"""The run's file of network, head and preprocessing, with which it opens without the checkpoint."""

_FROZEN = "frozen"
_CHANNELS = 3
"""Of a network whose configuration names no number of them."""


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder before its weights are read.

    Args:
        config: As `plain_config` returns it.
        heads: Parts of its classifier that are new.
        preparation: Its preprocessing.
        own_size: Pixels a side that it was made for.
    """

    config: Mapping[str, Any]
    heads: tuple[str, ...]
    preparation: Preparation
    own_size: int

    def to_bytes(self) -> bytes:
        """Returns what `from_bytes` reads."""
        document = {**vars(self), "preparation": self.preparation.to_json()}
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> Encoder:
        """Reads what `to_bytes` wrote."""
        found = json.loads(content)
        preparation = Preparation.from_json(found["preparation"])
        return Encoder(found["config"], tuple(found["heads"]), preparation, int(found["own_size"]))

    def build(self, output_count: int, is_frozen: bool) -> PictureClassifier:
        """Builds the classifier with random weights."""
        network = build_network(self.config, PICTURES, output_count)
        return PictureClassifier(network, self.heads, is_frozen, self.preparation, self.own_size)


def open_encoder(weights: str, size: int) -> Encoder:
    """Opens a checkpoint as far as its files of JSON.

    Args:
        weights: The setting `model.weights`.
        size: S; 0 for the checkpoint's own.

    Raises:
        UsageError: it is none of pictures, or its pictures cannot have this size.
    """
    checkpoint = open_weights(weights)
    check_kind(weights, checkpoint.config, PICTURES)
    config = plain_config(checkpoint)
    heads = find_heads(weights, config, PICTURES)
    preparation = read_preparation(weights, checkpoint, _channel_count(config), size)
    encoder = Encoder(config, heads, preparation, _own_size(checkpoint, preparation))
    _check_size(weights, encoder)
    return encoder


def _channel_count(config: Mapping[str, Any]) -> int:
    return int(config.get("num_channels", _CHANNELS))


def _own_size(checkpoint: Checkpoint, preparation: Preparation) -> int:
    """Returns the size that positions are counted for; networks without positions have no need of one."""
    inner = checkpoint.config.get("vision_config")
    size = (inner if isinstance(inner, Mapping) else checkpoint.config).get("image_size", preparation.size)
    sides = set(size) if isinstance(size, list) else {size}
    return int(sides.pop()) if len(sides) == 1 else 0


def _check_size(weights: str, encoder: Encoder) -> None:
    """Runs the network's shapes on a picture of this size."""
    size = encoder.preparation.size
    try:
        with shapes_alone():
            model = encoder.build(2, False).eval()
            model(torch.zeros(2, len(encoder.preparation.scale), size, size))
    except UsageError:
        raise
    except Exception as error:  # networks raise errors of any kind on shapes that they do not take
        if isinstance(error, NotImplementedError):
            return  # it needs values; the first step tells
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        own = f"its own is {encoder.own_size}" if encoder.own_size else "it has one of its own"
        raise UsageError(
            f"setting 'data.image_size': the encoder {weights} takes no pictures of {size} x {size} ({own}): {reason}"
        ) from None


def load_data(config: RunConfig, _places: Places, form: Form | None = None) -> DataSet:
    """Loads the pictures at `data.name`, resized by the checkpoint's filter to its size.

    Args:
        config: Of the run.
        form: Of a run that is there already, which needs its checkpoint no more.

    Raises:
        UsageError: the checkpoint cannot be used, or the pictures cannot be read.
    """
    weights = str(config.model["weights"])
    if not weights:
        raise UsageError("recipe picture-encoder: expected --set model.weights=DIR_OR_ID, a checkpoint of pictures")
    encoder = _encoder(form) if form else open_encoder(weights, _size(config))
    preparation = encoder.preparation
    sized = replace(config, data={**config.data, "image_size": preparation.size})
    data = own_data.load_data(sized, "image", preparation.resample)
    channel_count = Form.of(data).input_shapes[0][0]
    if channel_count not in (1, len(preparation.scale)):
        raise UsageError(
            f"model.weights {weights}: expected grey pictures, for its network has {len(preparation.scale)} channel, "
            f"got colour in {data.name}; convert them"
        )
    files = {ENCODER_FILE: encoder.to_bytes(), PREPROCESSOR_FILE: preparation.for_callers(channel_count)}
    side, name = preparation.size, encoder.config["model_type"]
    note = f"encoder {name}, pictures resized to {side} x {side} ({preparation.filter_name})"
    return replace(data, files=files, note="; ".join(part for part in (note, data.note) if part))


def _size(config: RunConfig) -> int:
    size = int(config.data["image_size"])
    if size < 0:
        raise UsageError(f"setting 'data.image_size': expected at least 1, or 0 for the checkpoint's own, got {size}")
    return size


def _encoder(form: Form) -> Encoder:
    return Encoder.from_bytes(form.files[ENCODER_FILE])


def build_model(config: RunConfig, form: Form) -> nn.Module:
    """Builds the network that the run's encoder.json describes."""
    with told(str(config.model["weights"]), "network"):
        return _encoder(form).build(own_data.ending(form).output_count, bool(config.model["frozen"]))


def start(config: RunConfig, model: nn.Module, data: DataSet) -> None:
    """Puts the checkpoint's weights into the encoder."""
    assert isinstance(model, PictureClassifier)
    weights = str(config.model["weights"])
    heads = Encoder.from_bytes(data.files[ENCODER_FILE]).heads
    load_encoder(weights, open_weights(weights), model.network, heads, PICTURES)


def rate_factors(config: RunConfig, heads: tuple[str, ...] = ()) -> dict[str, float]:
    """Returns the multiple of the learning rate that the head learns with.

    Raises:
        UsageError: it is not above 0.
    """
    factor = float(config.model["head_lr_factor"])
    if not 0 < factor < float("inf"):
        raise UsageError(f"setting 'model.head_lr_factor': expected a number above 0, got {factor:g}")
    return {f"network.{head}.": factor for head in heads}


def preset_for(data_name: str, values: Mapping[str, Scalar]) -> str:
    """Returns `frozen` where the head alone is trained, which takes a larger rate and more epochs, else the name."""
    return _FROZEN if str(values.get("model.frozen", "")).lower() == "true" else data_name


def for_form(form: Form) -> Recipe:
    """Fits input, outputs and files to the data and the encoder."""
    end, heads = own_data.ending(form), _encoder(form).heads
    return replace(
        RECIPE,
        load_data=partial(load_data, form=form),
        build_model=partial(build_model, form=form),
        rate_factors=partial(rate_factors, heads=heads),
        objective=end.objective,
        inputs=(ServedInput("image", torch.float32, ("batch", *form.input_shapes[0])),),
        output_name=end.output_name,
    )


RECIPE = Recipe(
    name="picture-encoder",
    defaults={
        **{key: own_data.SETTINGS[key] for key in ("data.hold_out", "data.skip_bad")},
        # 0: what the checkpoint was trained with.
        "data.image_size": 0,
        "optimizer": "adamw",
        "lr": 5e-5,
        "weight_decay": 0.01,
        "batch_size": 16,
        "epochs": 5,
        "model.weights": "",
        "model.frozen": False,
        # The new layer begins at random: it has a longer way to go than the encoder.
        "model.head_lr_factor": 10.0,
    },
    presets={_FROZEN: {"lr": 3e-4, "epochs": 10}},
    preset_for=preset_for,
    choose_data=own_data.choose_data,
    data_names=(),
    load_data=load_data,
    build_model=lambda _config: nn.Identity(),
    objective=Classification(),
    inputs=(ServedInput("image", torch.float32, ("batch",)),),
    output_name="logits",
    rate_factors=rate_factors,
    for_form=for_form,
    start=start,
    own_data=("images",),
)
