"""What a vision checkpoint does to pictures before its network: the trainer's part of it, and the graph's.

Files are decoded, turned upright, made grey or colour and resized to S x S by whoever reads them. Everything behind
that is arithmetic, and inside the served graph: values 0..1 become `scale * value + shift`, for each channel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fitserve_contract.checkpoints import Checkpoint, CheckpointError, image_size, read_preprocessing
from fitserve_training.errors import UsageError

_LARGEST_BYTE = 255
_FILTERS = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}
"""Pillow's numbers of its filters, which processors use too."""

_BILINEAR = 2
"""What transformers' processors resize with where their file does not tell."""


@dataclass(frozen=True)
class Preparation:
    """The preprocessing of a vision checkpoint.

    Args:
        size: S, pixels a side.
        resample: Pillow's number of the filter that resizes.
        scale: For each channel.
        shift: For each channel.
        is_bgr: The network takes blue first.
    """

    size: int
    resample: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    is_bgr: bool = False

    @property
    def filter_name(self) -> str:
        """Name of the filter, for people."""
        return _FILTERS[self.resample]

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Preparation:
        """Reads what `to_json` wrote."""
        values = {**document, "scale": tuple(document["scale"]), "shift": tuple(document["shift"])}
        return Preparation(**values)

    def for_callers(self, channel_count: int) -> bytes:
        """Returns a preprocessor_config.json of what is left to do to a picture before it is sent.

        Args:
            channel_count: Of the served input.
        """
        document = {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": channel_count != 1,
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / _LARGEST_BYTE,
            "do_normalize": False,
        }
        return (json.dumps(document, indent=2) + "\n").encode()


def read_preparation(weights: str, checkpoint: Checkpoint, channel_count: int, size: int) -> Preparation:
    """Reads preprocessor_config.json.

    Args:
        weights: The setting `model.weights`.
        checkpoint: Checked.
        channel_count: Of the network.
        size: S; 0 for the checkpoint's own.

    Raises:
        UsageError: there is none, or it does what is not known here.
    """
    try:
        _, facts = read_preprocessing(checkpoint)
        height, width = image_size(facts, checkpoint.config)
    except CheckpointError as error:
        raise UsageError(f"model.weights {weights}: {error}") from None
    where = f"model.weights {weights}: preprocessor_config.json"
    if height != width and not size:
        raise UsageError(f"{where}: expected square pictures, got {height} x {width}; --set data.image_size=…")
    scale, shift = _affine(where, facts, channel_count)
    resample = facts.get("resample", _BILINEAR)
    if not isinstance(resample, int) or resample not in _FILTERS:
        raise UsageError(f"{where}: resample: expected one of {', '.join(map(str, _FILTERS))}, got {resample!r}")
    return Preparation(size or height, resample, scale, shift, bool(facts.get("do_flip_channel_order")))


def _affine(where: str, facts: Mapping[str, Any], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Joins rescaling and normalisation: y = (255 x factor - offset - mean) / sd, as transformers' processors do."""
    factor = float(facts.get("rescale_factor", 1 / _LARGEST_BYTE)) if facts.get("do_rescale", True) else 1.0
    offset = 1.0 if facts.get("rescale_offset") else 0.0
    # A processor of MobileViT writes means of its base class, and normalises nothing.
    is_normalized = bool(facts.get("do_normalize", "image_mean" in facts and "do_flip_channel_order" not in facts))
    means = _per_channel(where, facts, "image_mean", count) if is_normalized else (0.0,) * count
    sds = _per_channel(where, facts, "image_std", count) if is_normalized else (1.0,) * count
    if facts.get("include_top"):  # EfficientNet divides by the deviation once more
        again = _per_channel(where, facts, "image_std", count)
        scale = tuple(_LARGEST_BYTE * factor / sd / other for sd, other in zip(sds, again, strict=True))
        shift = tuple(-(offset + m) / sd / other for m, sd, other in zip(means, sds, again, strict=True))
        return scale, shift
    scale = tuple(_LARGEST_BYTE * factor / sd for sd in sds)
    return scale, tuple(-(offset + mean) / sd for mean, sd in zip(means, sds, strict=True))


def _per_channel(where: str, facts: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    found = facts.get(key)
    values = [found] * count if isinstance(found, int | float) else found
    is_right = isinstance(values, list) and all(isinstance(one, int | float) for one in values)
    if not isinstance(values, list) or not is_right or len(values) != count or (key == "image_std" and 0 in values):
        raise UsageError(f"{where}: {key}: expected {count} numbers, one for each channel, got {found!r}")
    return tuple(float(one) for one in values)
