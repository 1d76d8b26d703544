"""From files to pixels, and which files are no pictures; torch is not needed. Shapes: S pixels a side."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from fitserve_training.data.own.picture_layout import find_pictures
from fitserve_training.errors import UsageError

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
S = TypeVar("S")
T = TypeVar("T")

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
BICUBIC = 3
"""Pillow's own choice of a filter for resizing."""

_GREY_MODES = ("1", "L", "LA", "La")
_LARGEST_16_BIT = 65535
_ORIENTATION = 274
"""EXIF's tag of how a camera was held; 1 to 8, and 1 is upright."""


class BadPictureError(Exception):
    """A file cannot be read as a picture; the message is the reason."""


def check_pictures(root: Path) -> None:
    """Opens every picture of a folder once, in as many threads as there are cores.

    Raises:
        UsageError: the folder has no layout that is read, or files are unreadable; the message names all of them.
    """
    files = [file.path for file in find_pictures(root).files]
    found = zip(files, each(files, _checked), strict=True)
    if bad := [(path, reason) for path, reason in found if reason is not None]:
        raise unreadable(root, bad)


def decode_picture(path: Path, size: int, resample: int = BICUBIC) -> Pixels:
    """Reads a file as (S, S) where it is grey and (S, S, 3) otherwise, 8 bits each.

    Pictures are turned upright as EXIF says, transparent parts become white, 16 bits become 8, and the proportions are
    not kept. `resample` is Pillow's number of a filter.

    Raises:
        BadPictureError: it is no picture.
    """
    with _opened(path) as image:
        image.load()
        return np.asarray(_flat(_upright(image)).resize((size, size), resample))


def content_sha256(files: Sequence[Path]) -> tuple[list[str], int]:
    """Hashes each file's content, with all cores; a file that cannot be read has the hash of its reason.

    Returns:
        SHA-256 in the order of the files, and how many bytes they have together.
    """
    found = each(files, _content_sha256)
    return [digest for digest, _ in found], sum(size for _, size in found)


def _content_sha256(path: Path) -> tuple[str, int]:
    if not path.is_file():  # a pipe would keep its reader waiting
        return hashlib.sha256(b"unreadable: no regular file").hexdigest(), 0
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
    except OSError as error:
        return hashlib.sha256(f"unreadable: {error.strerror}".encode()).hexdigest(), 0


def unreadable(root: Path, bad: Sequence[tuple[Path, BadPictureError]]) -> UsageError:
    """Builds the error that names every file that is no picture."""
    count = "1 file is" if len(bad) == 1 else f"{len(bad)} files are"
    return UsageError(
        f"data {root}: {count} unreadable, expected one of {', '.join(_FORMATS)}: {bad_files(root, bad)}; "
        "repair or remove them, or go on without them by --skip-bad"
    )


def bad_files(root: Path, bad: Sequence[tuple[Path, BadPictureError]]) -> str:
    """Lists files with what is wrong with each."""
    return ", ".join(f"{path.relative_to(root)} ({reason})" for path, reason in bad)


def each(items: Iterable[S], work: Callable[[S], T]) -> list[T]:
    """Does Pillow's work on each item in as many threads as there are cores; Pillow decodes without Python's lock."""
    from PIL import Image

    # Pillow warns of pictures above half of its limit on stderr; those above the limit are errors, and are named.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return list(pool.map(work, items))


def _checked(path: Path) -> BadPictureError | None:
    try:
        with _opened(path) as image:
            image.draft("L", (1, 1))  # a JPEG at an eighth of its size: all of the file is read, in a third of the time
            image.load()
            _check_range(image)
    except BadPictureError as error:
        return error
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a picture; whatever goes wrong until it is closed becomes a BadPictureError."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not path.is_file():
            raise BadPictureError("a link to nothing" if path.is_symlink() else "no regular file")
        if not path.stat().st_size:
            raise BadPictureError("an empty file")
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except BadPictureError:
        raise
    except UnidentifiedImageError:
        raise BadPictureError("no picture") from None
    except Image.DecompressionBombError as error:
        raise BadPictureError(f"too large, make it smaller: {error}") from None
    except Exception as error:  # decoders raise errors of any kind on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadPictureError(reason) from None


def _upright(image: Any) -> Any:
    """Turns a loaded picture as the camera was held; EXIF that cannot be read turns nothing."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION))
    except Exception:  # Pillow's readers raise errors of any kind on damaged EXIF
        return image
    return image if turn is None else image.transpose(turn)


def _check_range(image: Any) -> None:
    """Refuses pixels that have no white: floating point, and more than 16 bits."""
    if image.mode == "F":
        raise BadPictureError("pixels of floating point, not of 8 or 16 bits")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > _LARGEST_16_BIT:
            raise BadPictureError(f"pixels from {low} to {high}, not of 8 or 16 bits")


def _flat(image: Any) -> Any:
    """Brings a picture to L or RGB, transparent parts to white."""
    from PIL import Image

    _check_range(image)
    if image.mode.startswith("I"):
        scaled = np.asarray(image, np.float64) * (255 / _LARGEST_16_BIT)
        return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB").convert(mode)
    return image.convert(mode)
