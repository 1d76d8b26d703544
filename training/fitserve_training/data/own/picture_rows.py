"""The user's pictures as rows of bytes, decoded once; torch is not needed. Shapes: N pictures, C channels, S a side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_training.data.own.picture_files import (
    BICUBIC,
    BadPictureError,
    Pixels,
    check_pictures,
    content_sha256,
    decode_picture,
    each,
    unreadable,
)
from fitserve_training.data.own.picture_layout import find_pictures
from fitserve_training.data.store.array_file import Array, ArrayPlan
from fitserve_training.data.store.bar import counted
from fitserve_training.data.store.rows import Writer, is_on_disk, key_of, stored_rows

_FORMAT: Final = "pictures-1"
_DIGEST_BYTES: Final = 16
_COLOUR: Final = 3


@dataclass(frozen=True)
class PictureRows:
    """Decoded files, one row each; the rows of unreadable ones are zero.

    Args:
        pixels: uint8 (N, C, S, S): one channel where all are grey, otherwise three.
        sums: Sum and sum of squares of each channel, int64 (N, C, 2).
        digests: Equal for equal pixels, uint8 (N, 16).
        bad: Row to reason, of unreadable files.
    """

    pixels: Array
    sums: Array
    digests: Array
    bad: dict[int, BadPictureError]


class _ColourFoundError(Exception):
    """A picture has colour where all before were grey."""


def prepare_pictures(root: Path, size: int) -> None:
    """Decodes the pictures of a folder into their file, where they are many; only checks them where they are few.

    Args:
        root: As `find_pictures` takes it.
        size: S; 0 where it is not known yet, and then they are checked.

    Raises:
        UsageError: the folder has no layout that is read, files are unreadable, or the disk is full.
    """
    files = [file.path for file in find_pictures(root).files]
    byte_count = sum(path.stat().st_size for path in files if path.is_file())
    if size < 1 or not is_on_disk(len(files) * _COLOUR * size * size, byte_count):
        check_pictures(root)
    elif bad := picture_rows(files, size, is_content_checked=False).bad:
        raise unreadable(root, [(files[row], reason) for row, reason in bad.items()])


def picture_rows(
    files: Sequence[Path], size: int, resample: int = BICUBIC, *, is_content_checked: bool = True
) -> PictureRows:
    """Decodes files as `decode_picture` does, or finds them decoded: the same contents at the same size and filter.

    Args:
        files: In the order of the rows.
        size: S.
        resample: Pillow's number of a filter.
        is_content_checked: Whether rows that are found are compared with their digest; what is said of them is anyway.

    Raises:
        UsageError: the disk is full.
    """
    digests, byte_count = content_sha256(files)
    # A folder begins with one class: where its first picture is grey, most likely all are.
    is_grey = _is_first_grey(files, size, resample)
    rows = partial(_rows, files, size, resample, (digests, byte_count), is_content_checked)
    try:
        return rows(1 if is_grey else _COLOUR)
    except _ColourFoundError:
        return rows(_COLOUR)


def _is_first_grey(files: Sequence[Path], size: int, resample: int) -> bool:
    for path in files:
        try:
            return decode_picture(path, size, resample).ndim == 2
        except BadPictureError:
            continue
    return True


def _rows(
    files: Sequence[Path],
    size: int,
    resample: int,
    content: tuple[Sequence[str], int],
    is_content_checked: bool,
    channels: int,
) -> PictureRows:
    count, (digests, byte_count) = len(files), content
    plans = {
        "pixels": ArrayPlan("uint8", (count, channels, size, size)),
        "sums": ArrayPlan("int64", (count, channels, 2)),
        "digests": ArrayPlan("uint8", (count, _DIGEST_BYTES)),
    }
    key = key_of(_FORMAT, _decoders(), size, resample, channels, digests)
    fill = partial(_fill, files, partial(decode_picture, size=size, resample=resample), channels)
    arrays, facts = stored_rows(key, plans, "decoded pictures", fill, byte_count, is_content_checked=is_content_checked)
    bad = {row: BadPictureError(reason) for row, reason in facts["bad"]}
    return PictureRows(arrays["pixels"], arrays["sums"], arrays["digests"], bad)


def _decoders() -> list[str | None]:
    """Names the versions that decide about pixels."""
    import PIL
    from PIL import features

    return [PIL.__version__, *(features.version(name) for name in ("jpg", "webp", "libtiff"))]


def _fill(files: Sequence[Path], read: Callable[[Path], Pixels], channels: int, writer: Writer) -> dict[str, Any]:
    bad: dict[int, str] = {}
    with counted("pictures", len(files)) as done:

        def decode(item: tuple[int, Path]) -> None:
            row, path = item
            try:
                _write(writer, row, read(path), channels)
            except BadPictureError as error:
                bad[row] = str(error)
            done()

        each(enumerate(files), decode)
    return {"bad": sorted(bad.items())}


def _write(writer: Writer, row: int, pixels: Pixels, channels: int) -> None:
    if pixels.ndim == 3 and channels == 1:
        raise _ColourFoundError
    planes = np.repeat(pixels[None], channels, axis=0) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    planes = np.ascontiguousarray(planes)
    counts = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in planes])
    sums = counts @ np.stack([np.arange(256), np.arange(256) ** 2], axis=1)
    digest = hashlib.blake2b(planes.data, digest_size=_DIGEST_BYTES).digest()
    writer.write("pixels", row, planes[None])
    writer.write("sums", row, sums[None])
    writer.write("digests", row, np.frombuffer(digest, np.uint8)[None])
