"""What kind of data a path is, told by its name and, for a table, its columns."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from fitserve_training.errors import UsageError

IMAGES, TABLE, ARRAYS, TEXT = "images", "table", "arrays", "text"
_SUFFIXES = {"": IMAGES, ".csv": TABLE, ".npz": ARRAYS, ".jsonl": TEXT}
FORMS = "a folder with a folder of pictures per class, a .csv table, .npz arrays or .jsonl texts"

COUNTERS = re.compile(r"(|#|unnamed: \d+|index|idx|row|row[ _.-]?(num|number|nr|names?)|rownames?)", re.IGNORECASE)
"""Names that programs and people give to a column of row numbers."""

IDENTIFIERS = re.compile(r"(?i:(.*[ _.-])?(id|uuid|guid))|.*[a-z](Id|ID)")
"""Names of a column that tells rows apart: id, customer_id, PassengerId; not paid or grid."""

_TEXT_COLUMNS = {"text", "label"}


def is_path(name: str) -> bool:
    """Says whether a value of `data.name` means the user's own data: it has a separator or a suffix, or is there."""
    return "/" in name or Path(name).suffix in (".csv", ".npz", ".jsonl") or Path(name).exists()


def kind_of(path: Path) -> str:
    """Gives the kind of data: `images` for a folder, otherwise by suffix; a table of text and label alone is `text`.

    Raises:
        UsageError: the suffix is none that can be read.
    """
    kind = IMAGES if path.is_dir() else _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"data {path}: expected {FORMS}, got a {path.suffix} file")
    return TEXT if kind == TABLE and _is_table_of_texts(path) else kind


def _is_table_of_texts(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return False  # whoever reads the table says what is wrong with it
    return {name for name in header if not (COUNTERS.fullmatch(name) or IDENTIFIERS.fullmatch(name))} == _TEXT_COLUMNS


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
