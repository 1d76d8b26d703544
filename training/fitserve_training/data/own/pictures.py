"""The user's pictures as tensors. Shapes: N pictures, C channels, S pixels a side."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import check_classes
from fitserve_training.data.own.picture_files import (
    BICUBIC,
    BadPictureError,
    Pixels,
    bad_files,
    read_pictures,
    unreadable,
)
from fitserve_training.data.own.picture_layout import TEST, TRAIN, VAL, PictureFile, find_pictures
from fitserve_training.errors import UsageError

_LARGEST_BYTE = np.float32(255)


def load_pictures(
    path: Path, size: int, held_out_share: float, seed: int, is_bad_skipped: bool, resample: int = BICUBIC
) -> DataSet:
    """Reads a folder of pictures as float32 (N, C, S, S) in 0..1: grey where all are, otherwise colour.

    Where folders say the splits, test is held out, or else val; otherwise a share of the pictures is.

    Args:
        path: As `find_pictures` takes it.
        size: S.
        held_out_share: Share that is held out where no folder says what is.
        seed: Decides which.
        is_bad_skipped: Goes on without unreadable files.
        resample: Pillow's number of the filter that resizes.

    Raises:
        UsageError: another layout, fewer than two classes, or unreadable files; the message names all of them.
    """
    if size < 1:
        raise UsageError(f"setting 'data.image_size': expected at least 1, got {size}")
    folder = find_pictures(path)
    read = list(zip(folder.files, read_pictures([file.path for file in folder.files], size, resample), strict=True))
    bad = [(file.path, pixels) for file, pixels in read if isinstance(pixels, BadPictureError)]
    if bad and not is_bad_skipped:
        raise unreadable(path, bad)
    good = [(file, pixels) for file, pixels in read if not isinstance(pixels, BadPictureError)]
    files = [file for file, _ in good]
    _check_counts(path, files, folder.class_names)
    images, colour = _planes([pixels for _, pixels in good])
    place = {name: i for i, name in enumerate(folder.class_names)}
    labels = torch.tensor([place[file.class_name] for file in files])
    train, held_out, how = _splits(files, images, labels, held_out_share, seed)
    notes = [*folder.notes]
    notes += [f"left out {len(bad)} unreadable files: {bad_files(path, bad)}"] if bad else []
    notes += _split_notes(files) + _copies_note(train, held_out)
    return DataSet(
        name=str(path),
        source=f"{len(labels):,} {colour} pictures of {len(place)} classes ({_shown(folder.class_names)}) in {path} "
        f"({len(train):,} to train on, {len(held_out):,} held out {how})",
        train=train,
        held_out=held_out,
        class_names=folder.class_names,
        note="; ".join(notes),
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _planes(pictures: Sequence[Pixels]) -> tuple[Tensor, str]:
    """Stacks pictures to float32 (N, C, S, S); grey ones among others get three equal channels."""
    if all(pixels.ndim == 2 for pixels in pictures):
        planes, colour = np.stack(pictures)[:, None], "grey"
    else:
        three = [pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2) for pixels in pictures]
        planes, colour = np.stack(three).transpose(0, 3, 1, 2), "colour"
    return torch.from_numpy(np.ascontiguousarray(planes.astype(np.float32) / _LARGEST_BYTE)), colour


def _check_counts(path: Path, files: Sequence[PictureFile], class_names: Sequence[str]) -> None:
    counts = Counter(file.class_name for file in files if file.split in ("", TRAIN))
    splits = {file.split for file in files}
    by_class = {name: counts[name] for name in class_names}
    if len(by_class) == 1 and (below := sorted({_below(path, file) for file in files} - {""})):
        raise UsageError(
            f"data {path}: expected at least two classes, got only {class_names[0]!r}; for its folders "
            f"({_shown(below)}) as classes pass --data {path / class_names[0]}"
        )
    check_classes(path, by_class, 1 if splits & {VAL, TEST} else 2)


def _below(path: Path, file: PictureFile) -> str:
    parts = file.path.relative_to(path).parts
    return parts[1] if len(parts) > 2 and not file.split else ""


def _splits(
    files: Sequence[PictureFile], images: Tensor, labels: Tensor, share: float, seed: int
) -> tuple[Split, Split, str]:
    held_out = _held_out_split(files)
    if not held_out:
        return *hold_out((images,), labels, share, seed), f"by seed {seed}"
    rows = {name: torch.tensor([file.split == name for file in files]) for name in (TRAIN, held_out)}
    train, test = (Split((images[chosen],), labels[chosen]) for chosen in rows.values())
    return train, test, f"as the folder {held_out} says"


def _held_out_split(files: Sequence[PictureFile]) -> str:
    found = {file.split for file in files}
    return next((name for name in (TEST, VAL) if name in found), "")


def _split_notes(files: Sequence[PictureFile]) -> list[str]:
    counts = Counter(file.split for file in files)
    if counts[VAL] and counts[TEST]:
        return [f"{counts[VAL]} pictures of the split val are neither trained on nor tested on, for there is test"]
    return []


def _copies_note(train: Split, held_out: Split) -> list[str]:
    """Warns of pictures on both sides, as the model sees them."""
    known = set(map(_digest, train.inputs[0]))
    count = sum(_digest(image) in known for image in held_out.inputs[0])
    if not count:
        return []
    return [
        f"warning: {count} of {len(held_out):,} held-out pictures are trained on too, so test figures are too good; "
        "remove the copies"
    ]


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()
