"""A folder per class with pictures in it. Shapes: N pictures, C channels, S pixels a side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitserve_training.data.dataset import DataSet
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import check_classes, check_present
from fitserve_training.errors import UsageError

_GREY_MODES = ("1", "L", "I", "I;16", "F")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def load_pictures(path: Path, size: int, held_out_share: float, seed: int) -> DataSet:
    """Reads `path/<class>/<picture>` as float32 (N, C, S, S) in 0..1: grey where all pictures are, otherwise colour.

    Pictures are brought to S × S without keeping their proportions, transparent parts to white, as
    `fitserve-client predict` does with a PNG.

    Raises:
        UsageError: no classes, one class, or a file that is no picture; the message names the file.
    """
    check_present(path)
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(f"data {path}: expected a folder of pictures for each class, found no folder in it")
    files = {entry.name: _files(entry) for entry in classes}
    check_classes(path, {name: len(found) for name, found in files.items()})
    images = [_read(file, size) for found in files.values() for file in found]
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = np.stack([np.asarray(image.convert(mode)) for image in images]).astype(np.float32) / np.float32(255)
    planes = pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)
    labels = torch.tensor([label for label, found in enumerate(files.values()) for _ in found])
    train, held_out = hold_out((torch.from_numpy(np.ascontiguousarray(planes)),), labels, held_out_share, seed)
    colour = "grey" if mode == "L" else "colour"
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    return DataSet(
        name=str(path),
        source=f"{len(labels):,} {colour} pictures of {len(files)} classes in {path} ({counts})",
        train=train,
        held_out=held_out,
        class_names=tuple(files),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.rglob("*") if entry.is_file() and not entry.name.startswith("."))


def _read(file: Path, size: int) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=_FORMATS) as image:
            image.load()
            return _flat(image).resize((size, size))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UsageError(f"picture {file}: expected one of {', '.join(_FORMATS)}, got {reason}") from None


def _flat(image: Any) -> Any:
    """Brings a picture to L or RGB, transparent parts to white."""
    from PIL import Image

    if image.mode.startswith("I"):
        scaled = np.asarray(image, np.float64) * (255 / 65535)
        return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")
