"""What the image recipes have in common: inputs of (B, 1, 28, 28) in 0..1 and logits over 10 classes."""

from __future__ import annotations

import torch

from fitserve_training.config import RunConfig
from fitserve_training.data import images
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.places import Places
from fitserve_training.recipe import ServedInput

INPUTS = (ServedInput("image", torch.float32, ("batch", 1, 28, 28)),)
OUTPUT_NAME = "logits"


def load_data(config: RunConfig, places: Places) -> DataSet:
    """Loads the images that `data.name` says."""
    return images.load(str(config.data["name"]), places)
