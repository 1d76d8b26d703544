"""PNG pictures as the input of an image model: (1, C, H, W) with values 0..1, light drawings on dark ground.

The data sets that the recipes train on are white on black: the background is 0. A dark drawing on white paper must be
inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fitserve_client.errors import FileError
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tensor_bytes import Array, shape_text

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES: Final = {1: "L", 3: "RGB"}
"""Channel count to Pillow's mode."""

BICUBIC: Final = 3
"""Pillow's own choice of a filter for resizing."""

FILTERS: Final = range(6)
"""Pillow's numbers of its filters, nearest to Hamming."""

_SIXTEEN_BIT_SCALE: Final = 255 / 65535
_BRIGHT: Final = 0.5
"""A mean above this looks like dark ink on white paper."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What an input takes: channels (None: no channel axis), height and width (None: any)."""

    channel_count: int | None
    height: int | None
    width: int | None


def read_picture(
    path: Path, spec: TensorSpec, *, is_inverted: bool, resample: int = BICUBIC
) -> tuple[Array, list[str]]:
    """Reads a PNG for an input.

    The picture is turned upright as its EXIF data says. Colours become grey where the input has one channel (ITU-R
    601-2 luma), transparent parts white; another size is resized, without keeping the proportions.

    Args:
        path: The file.
        spec: The input: (B, C, H, W) with 1 or 3 channels, or (B, H, W).
        is_inverted: Exchange light and dark.
        resample: Pillow's number of the filter that resizes.

    Returns:
        Array of the input's shape with B = 1: float32 0..1, or uint8 0..255 where the input takes integers; and
        sentences on what was done to the picture.

    Raises:
        FileError: Pillow is missing, the file is no PNG, or the input takes no pictures.
    """
    form = _form(spec)
    image = _opened(path)
    notes = []
    size = (form.width or image.width, form.height or image.height)
    if image.size != size:
        notes.append(f"resized from {image.width}x{image.height} to {size[0]}x{size[1]}")
        image = image.resize(size, resample)
    pixels = np.asarray(image.convert(_MODES[form.channel_count or 1]))
    if is_inverted:
        pixels = 255 - pixels
    elif pixels.mean() > 255 * _BRIGHT:
        notes.append("mostly bright, while the data sets are light on dark: try --invert if the answer looks wrong")
    return _shaped(pixels, form, spec.datatype), notes


def _form(spec: TensorSpec) -> _Form:
    shape = [axis if isinstance(axis, int) else None for axis in spec.shape or ()]
    if len(shape) == 3 and shape[0] in (None, 1):
        return _Form(None, shape[1], shape[2])
    if len(shape) == 4 and shape[0] in (None, 1) and shape[1] in (None, *_MODES):
        return _Form(shape[1] or 1, shape[2], shape[3])
    found = "any shape" if spec.shape is None else shape_text(spec.shape)
    raise FileError(f"input '{spec.name}': expected pictures (B, 1 or 3, H, W) for a .png file, got {found}")


def _opened(path: Path) -> Image:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise FileError("reading .png files needs Pillow: pip install 'fitserve[images]'") from None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return _flat(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise FileError(f"file '{path}': expected a file, found none") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(f"file '{path}': expected a PNG picture, got {error}") from None


def _flat(image: Image) -> Image:
    """Eight bits a channel and no transparency."""
    from PIL import Image as Images

    if image.mode.startswith("I"):
        return Images.fromarray((np.asarray(image, np.float64) * _SIXTEEN_BIT_SCALE).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground: Any = Images.new("RGBA", image.size, "white")
    return Images.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _shaped(pixels: Array, form: _Form, datatype: str) -> Array:
    """(H, W) or (H, W, 3) pixels to (1, C, H, W) or (1, H, W)."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    batch = planes if form.channel_count is None else planes[None]
    if NUMPY_DTYPES[datatype].kind in "iu" and datatype != "BF16":
        return batch
    return batch.astype(np.float32) / np.float32(255)
