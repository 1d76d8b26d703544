"""How a table is to be read, and what is said of how it was."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitserve_contract.columns import ColumnKind, TableColumns
from fitserve_training.errors import UsageError

_SHOWN = 12
"""Columns of a kind that are named."""


@dataclass(frozen=True)
class TableSettings:
    """How a table is read.

    Args:
        label: Name of the label's column.
        task: `classification`, `regression` or `auto`.
        held_out_share: Share of the rows held out.
        seed: Decides which.
        categories: Columns whose values are categories, whatever they look like; names separated by commas.
        drop: Columns that are left out.
    """

    label: str
    task: str
    held_out_share: float
    seed: int
    categories: str = ""
    drop: str = ""


def label_place(path: Path, header: Sequence[str], label: str) -> int:
    """Finds the label's column.

    Raises:
        UsageError: there is none of that name.
    """
    if label.strip() not in header or not label.strip():
        hint = "--set data.label=COLUMN" if not label else f"a column {label!r}"
        raise UsageError(f"data {path}: expected {hint}, the columns are {', '.join(header)}")
    return header.index(label.strip())


def named_columns(path: Path, setting: str, value: str, names: Mapping[str, object]) -> list[str]:
    """Reads a setting of column names, quoted as in a CSV where they hold commas.

    Raises:
        UsageError: there is no column of such a name.
    """
    wanted = [name.strip() for name in next(csv.reader([value]), []) if name.strip()]
    for name in wanted:
        if name not in names:
            raise UsageError(f"setting '{setting}': expected columns of {path}, {', '.join(names)}, got {name!r}")
    return wanted


def column_notes(columns: TableColumns) -> list[str]:
    """Says what each column was taken for, but for a table of plain numbers."""
    if columns.is_joined:
        missing = [column.name for column in columns.columns if column.has_missing]
        return [f"missing values of {listed_columns(missing)} become the median"] if missing else []
    words = {
        ColumnKind.NUMBER: "numbers: {}",
        ColumnKind.AMOUNT: "numbers with thousands separators or percent signs (12 % is 0.12): {}",
        ColumnKind.CATEGORY: "categories, with one more for other values: {}",
    }
    said = []
    for kind, text in words.items():
        of_kind = [column for column in columns.columns if column.kind is kind]
        if of_kind:
            counted = [f"{one.name} ({len(one.categories)})" if one.categories else one.name for one in of_kind]
            said.append(text.format(listed_columns(counted)))
    renamed = [f"column {one.name!r} is the input {one.input!r}" for one in columns.columns if one.input != one.name]
    return [*said, *renamed]


def listed_columns(names: Sequence[str]) -> str:
    """Lists the first names of columns, and says how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
