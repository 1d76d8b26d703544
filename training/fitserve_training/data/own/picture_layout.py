"""Which pictures a folder holds, of which class and split; no picture is opened, and torch is not needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitserve_contract.printable import printable
from fitserve_training.data.own.kinds import check_present
from fitserve_training.errors import UsageError

TRAIN, VAL, TEST = "train", "val", "test"
_SPLITS = re.compile(
    r"(?:(?:seg|images?|data|my)[ _.-]?)?"
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?)|(?P<test>test(?:ing)?))"
    r"(?:[ _.-]?(?:data)?set|[ _.-]?(?:data|images?|imgs?|pictures|folder|split)|[ _.-]?\d{4})?",
    re.IGNORECASE,
)
"""Names of split folders: train, Validation, test_set, train-images, seg_test, val2017."""

_BESIDE_TRAIN = {**dict.fromkeys(("dev", "development"), VAL), **dict.fromkeys(("eval", "evaluation", "holdout"), TEST)}
"""Names that are splits beside a folder called train, and may be classes elsewhere."""

_TABLES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".parquet")
_CLUTTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

_NUMBERED = re.compile(r"(?P<name>.*?[^\W\d_].*?)[ ._-]*\(?\d+\)?")
"""The stem of a file that says its class: cat.1, great_pyrenees_103, cat (2)."""

_CAMERA = re.compile(
    r"(img|dsc[fn]?|pxl|vid|mvi|gopr|image|photo|picture|pic|scan|scr?eenshot|frame|file|unnamed|untitled|bild|foto)"
    r"(?![^\W\d_])",
    re.IGNORECASE,
)
"""Beginnings that cameras and programs give to every picture: no class."""

_SHOWN = 3


@dataclass(frozen=True)
class PictureFile:
    """A file that should be a picture: its class, and the split that its folder says (empty where none does)."""

    path: Path
    class_name: str
    split: str


@dataclass(frozen=True)
class PictureFolder:
    """All pictures of a folder in the order of their paths, split by split, and what there is to say of its layout."""

    files: tuple[PictureFile, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def find_pictures(root: Path) -> PictureFolder:
    """Finds `root/<class>/…`, `root/<split>/<class>/…`, `root/<class>/<split>/…`, or flat files named like `cat.1.png`.

    Folders called train, val, valid, validation or test, in any case, are splits and never classes, and so are
    train_set, seg_test, val2017 and the like. They may lie in one folder inside of another
    (root/dataset/train/cat/1.png). Hidden entries and the clutter of file managers are passed over; links are followed.

    Raises:
        UsageError: the folder has another layout; the message names what is in the way and the layouts that are read.
    """
    check_present(root)
    inner = _unwrapped(root)
    folders, splits = _folders(inner), _splits_in(inner)
    parts = list(splits)
    if parts and len(parts) < len(folders):
        other = next(folder for folder in folders if folder not in splits)
        raise UsageError(
            f"data {root}: expected folders of splits or of classes, got both: {parts[0].name} and {other.name}; "
            f"move or rename one of them. {_layouts(root)}"
        )
    found: list[PictureFile] = []
    classes: list[str] = []
    notes = [] if inner == root else [f"read from {inner.relative_to(root)}/, which holds the splits"]
    for part in parts or [root]:
        split = splits.get(part, "")
        inside = _classes_in(root, part, split)
        found += inside.files
        classes += inside.class_names
        notes += inside.notes
    if not found and not classes:
        raise UsageError(f"data {root}: found no pictures in it. {_layouts(root)}")
    if len(set(classes)) == 1 and (table := _table(root)):
        raise UsageError(f"data {root}: expected at least two classes, got only {classes[0]!r}. {table}")
    _check_splits(root, found)
    return PictureFolder(tuple(found), tuple(sorted(set(classes))), tuple(notes))


def _split_of(name: str) -> str:
    """Returns the split that a folder's name says; empty where it says none."""
    match = _SPLITS.fullmatch(name)
    return str(match.lastgroup) if match else ""


def _splits_in(folder: Path) -> dict[Path, str]:
    """Returns the folders that are splits."""
    inside = _folders(folder)
    found = {entry: split for entry in inside if (split := _split_of(entry.name))}
    if TRAIN in found.values():
        found |= {entry: _BESIDE_TRAIN[entry.name.lower()] for entry in inside if entry.name.lower() in _BESIDE_TRAIN}
    return dict(sorted(found.items()))


def _unwrapped(root: Path) -> Path:
    """Follows folders that hold one folder alone down to folders of splits, as archives unpack them."""
    folder, seen = root, {root.resolve()}
    while True:
        folders = _folders(folder)
        loose = any(entry.suffix.lower() in _PICTURES for entry in _entries(folder) if not entry.is_dir())
        if len(folders) != 1 or loose or _split_of(folders[0].name):
            return root
        folder = folders[0]
        if folder.resolve() in seen:
            return root
        seen.add(folder.resolve())
        splits = _splits_in(folder)
        if splits and all(_folders(split) for split in splits):
            return folder


def _table(root: Path) -> str:
    """Says that a table beside the pictures is not read as their labels; empty where there is none."""
    name = next((entry.name for entry in _entries(root) if entry.suffix.lower() in _TABLES), "")
    if not name:
        return ""
    return f"Labels in a table ({name}) are not read; move each picture into a folder of its class. {_layouts(root)}"


def _classes_in(root: Path, part: Path, split: str) -> PictureFolder:
    folders = _folders(part)
    loose = [entry for entry in _entries(part) if not entry.is_dir()]
    if not folders:
        return _flat(root, loose, split)
    for folder in folders:
        if _split_of(folder.name):
            raise UsageError(
                f"data {root}: expected folders of classes in {part.name}/, got the split {part.name}/{folder.name}/; "
                f"move what is in it up. {_layouts(root)}"
            )
    files = []
    for folder in folders:
        for path in _files_below(folder, frozenset((part.resolve(),))):
            below = path.relative_to(folder).parts
            inner = _split_of(below[0]) if len(below) > 1 and not split else split
            files.append(PictureFile(path, folder.name, inner))
    left_out = [path.name for path in loose if path.suffix.lower() in _PICTURES]
    return PictureFolder(tuple(files), tuple(folder.name for folder in folders), _loose_note(part, left_out))


def _loose_note(part: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return (f"{len(names)} pictures of {part.name}/ are in no class's folder and left out ({shown})",)


def _flat(root: Path, files: Sequence[Path], split: str) -> PictureFolder:
    """Reads the classes of files in one folder from their names."""
    pictures = [path for path in files if path.suffix.lower() in _PICTURES]
    found = []
    for path in pictures:
        match = _NUMBERED.fullmatch(path.stem)
        if match is None or _CAMERA.match(path.stem):
            raise UsageError(f"data {root}: {path.relative_to(root)} says no class. {_table(root) or _layouts(root)}")
        found.append(PictureFile(path, match["name"], split))
    names = sorted({file.class_name for file in found})
    note = f"classes from the names of the files: {', '.join(names)}"
    return PictureFolder(tuple(found), tuple(names), (note,) if names else ())


def _check_splits(root: Path, files: Sequence[PictureFile]) -> None:
    splits = {file.split for file in files}
    if "" in splits and len(splits) > 1:
        outside = next(file.path for file in files if not file.split)
        raise UsageError(
            f"data {root}: expected every picture in a split, as some are, got {outside.relative_to(root)} in none"
        )
    if splits & {VAL, TEST} and TRAIN not in splits:
        raise UsageError(f"data {root}: expected pictures in train/ beside {', '.join(sorted(splits))}/, found none")
    known = {file.class_name for file in files if file.split in ("", TRAIN)}
    for file in files:
        if file.class_name not in known:
            raise UsageError(
                f"data {root}: class {file.class_name!r} of {file.split}/: expected it in train/ too, got there only "
                f"{', '.join(sorted(known))}"
            )


def _layouts(root: Path) -> str:
    name = root.name or "pictures"
    return (
        f"Expected a folder of pictures for each class ({name}/cat/1.png), those in folders train and test "
        f"({name}/train/cat/1.png), or files named by class and number ({name}/cat.1.png)"
    )


def _entries(folder: Path) -> list[Path]:
    entries = sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER
    )
    for entry in entries:
        if printable(entry.name) != entry.name:
            raise UsageError(
                f"data {folder}: expected names in UTF-8 without control characters, got {os.fsencode(entry.name)!r}; "
                "rename it"
            )
    return entries


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _files_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yields every file in the order of the paths; a link to a folder that it is in itself is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _files_below(entry, above | {real})
        else:
            yield entry
