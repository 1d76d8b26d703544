"""What kind of data a path is, told by its name alone."""

from __future__ import annotations

from pathlib import Path

from fitserve_training.errors import UsageError

IMAGES, TABLE, ARRAYS, TEXT = "images", "table", "arrays", "text"
_SUFFIXES = {"": IMAGES, ".csv": TABLE, ".npz": ARRAYS, ".jsonl": TEXT}
FORMS = "a folder with a folder of pictures per class, a .csv table, .npz arrays or .jsonl texts"


def is_path(name: str) -> bool:
    """Says whether a value of `data.name` means the user's own data: it has a separator or a suffix, or is there."""
    return "/" in name or Path(name).suffix in (".csv", ".npz", ".jsonl") or Path(name).exists()


def kind_of(path: Path) -> str:
    """Gives the kind of data: `images` for a folder, otherwise by suffix.

    Raises:
        UsageError: the suffix is none that can be read.
    """
    kind = IMAGES if path.is_dir() else _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"data {path}: expected {FORMS}, got a {path.suffix} file")
    return kind


def check_present(path: Path) -> None:
    """Checks that the data is there.

    Raises:
        UsageError: it is not.
    """
    if not path.exists():
        raise UsageError(f"data {path}: expected {FORMS}, found none")


def check_classes(path: Path, counts: dict[str, int], fewest: int = 2) -> None:
    """Checks that there are classes to tell apart, with examples to train on and to hold out.

    Args:
        path: For error messages.
        counts: Examples of each class.
        fewest: Of a class: two where some of them are held out, one where those are there already.

    Raises:
        UsageError: fewer than two classes, or a class of too few examples; the message names it.
    """
    if len(counts) < 2:
        only = f"only {next(iter(counts))!r}" if counts else "none"
        raise UsageError(f"data {path}: expected at least two classes, got {only}")
    for name, count in counts.items():
        if count < fewest:
            least = "one example" if fewest == 1 else "two examples"
            raise UsageError(
                f"data {path}: class {name!r}: expected at least {least}, got {count}; add some or remove it"
            )
