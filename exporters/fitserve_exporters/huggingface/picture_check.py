"""Checks what a checkpoint says of its pictures: a caller computes (picture * rescale_factor - mean) / std of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fitserve_contract.checkpoints import PREPROCESSOR_FILE
from fitserve_exporters.errors import ExportError


def check_preprocessing(facts: Mapping[str, Any], channels: int, size: tuple[int, int]) -> None:
    """Checks the preprocessing of pictures against the model's input.

    Args:
        facts: What preprocessor_config.json says.
        channels: Of the model's pictures.
        size: Height and width of the model's pictures.

    Raises:
        ExportError: numbers are missing or no numbers, a deviation is not above 0, or the pictures that come out have
            another size than the model's.
    """
    if facts.get("do_rescale"):
        _check_positive("rescale_factor", facts.get("rescale_factor", 1 / 255))
    if facts.get("do_normalize"):
        for key in ("image_mean", "image_std"):
            _check_channels(key, facts.get(key), channels)
    cut = "crop_size" if facts.get("do_center_crop") else "size" if facts.get("do_resize") else ""
    found = facts.get(cut)
    if isinstance(found, Mapping) and None not in (pair := (found.get("height"), found.get("width"))) and pair != size:
        raise ExportError(
            f"{PREPROCESSOR_FILE}: {cut}: expected {size[0]} by {size[1]}, the pictures of the model, got "
            f"{pair[0]} by {pair[1]}; is it the file of another model?"
        )


def _check_channels(key: str, values: Any, channels: int) -> None:
    """Checks one number, or one for each channel; deviations are above 0."""
    numbers = values if isinstance(values, list) else [values]
    if len(numbers) not in (1, channels):
        raise ExportError(f"{PREPROCESSOR_FILE}: {key}: expected {channels} numbers, one per channel, got {values}")
    for number in numbers:
        if key == "image_std":
            _check_positive(key, number)
        elif not _is_number(number):
            raise ExportError(f"{PREPROCESSOR_FILE}: {key}: expected {channels} numbers, got {str(values)[:80]}")


def _check_positive(key: str, value: Any) -> None:
    if not _is_number(value) or value <= 0:
        raise ExportError(f"{PREPROCESSOR_FILE}: {key}: expected a number above 0, got {str(value)[:80]!r}; correct it")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
