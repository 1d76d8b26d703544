"""The user's pictures as tensors. Shapes: N pictures, C channels, S pixels a side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.hold_out import hold_out_rows
from fitserve_training.data.own.kinds import check_classes
from fitserve_training.data.own.picture_files import BICUBIC, bad_files, unreadable
from fitserve_training.data.own.picture_layout import TEST, TRAIN, VAL, PictureFile, find_pictures
from fitserve_training.data.own.picture_rows import PictureRows, picture_rows
from fitserve_training.data.store.array_file import Array
from fitserve_training.data.store.tensors import tensor_of
from fitserve_training.errors import UsageError


def load_pictures(
    path: Path, size: int, held_out_share: float, seed: int, is_bad_skipped: bool, resample: int = BICUBIC
) -> DataSet:
    """Reads a folder of pictures, (N, C, S, S) in 0..1: grey where all are, otherwise colour; kept as bytes.

    Where folders say the splits, test is held out and val is there to select by; without test, val is held out.
    Otherwise a share of the pictures is.

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
    decoded = picture_rows([file.path for file in folder.files], size, resample)
    bad = [(folder.files[row].path, reason) for row, reason in decoded.bad.items()]
    if bad and not is_bad_skipped:
        raise unreadable(path, bad)
    good = [row for row in range(len(folder.files)) if row not in decoded.bad]
    files = [folder.files[row] for row in good]
    _check_counts(path, files, folder.class_names)
    every, colour = _every(decoded, good, [folder.class_names.index(file.class_name) for file in files])
    train, held_out, how = _splits(files, every, held_out_share, seed)
    notes = [*folder.notes]
    notes += [f"left out {len(bad)} unreadable files: {bad_files(path, bad)}"] if bad else []
    notes += _copies_note(train, held_out, decoded.digests)
    return DataSet(
        name=str(path),
        source=f"{len(files):,} {colour} pictures of {len(folder.class_names)} classes ({_shown(folder.class_names)}) "
        f"in {path} ({len(train):,} to train on, {len(held_out):,} held out {how})",
        train=train,
        held_out=held_out,
        class_names=folder.class_names,
        note="; ".join(notes),
        validation=_validation(files, every),
        ignored=("data.hold_out",) if _held_out_split(files) else (),
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _every(decoded: PictureRows, good: Sequence[int], labels: Sequence[int]) -> tuple[Split, str]:
    """Makes one split of all pictures that could be read, and says whether they are grey."""
    every = Split(
        (tensor_of(decoded.pixels),),
        torch.tensor(labels),
        is_bytes=True,
        rows=torch.tensor(good),
        sums=tensor_of(decoded.sums),
    )
    return every, "grey" if decoded.pixels.shape[1] == 1 else "colour"


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


def _splits(files: Sequence[PictureFile], every: Split, share: float, seed: int) -> tuple[Split, Split, str]:
    held_out = _held_out_split(files)
    if held_out:
        train_rows, held_out_rows = (_rows_in(name, files) for name in (TRAIN, held_out))
    else:
        train_rows, held_out_rows = hold_out_rows(every.targets, share, seed)
    how = f"as the folder {held_out} says" if held_out else f"by seed {seed}"
    return every.subset(train_rows), every.subset(held_out_rows), how


def _held_out_split(files: Sequence[PictureFile]) -> str:
    found = {file.split for file in files}
    return next((name for name in (TEST, VAL) if name in found), "")


def _validation(files: Sequence[PictureFile], every: Split) -> Split | None:
    is_apart = {TEST, VAL} <= {file.split for file in files}
    return every.subset(_rows_in(VAL, files)) if is_apart else None


def _rows_in(split: str, files: Sequence[PictureFile]) -> Tensor:
    return torch.tensor([row for row, file in enumerate(files) if file.split == split])


def _copies_note(train: Split, held_out: Split, digests: Array) -> list[str]:
    """Warns of pictures on both sides, as the model sees them."""
    known = set(_digests_of(train, digests))
    count = sum(digest in known for digest in _digests_of(held_out, digests))
    if not count:
        return []
    return [
        f"warning: {count} of {len(held_out):,} held-out pictures are trained on too, so test figures are too good; "
        "remove the copies"
    ]


def _digests_of(split: Split, digests: Array) -> list[bytes]:
    assert split.rows is not None
    return [digests[row].tobytes() for row in split.rows.tolist()]
