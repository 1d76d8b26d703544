"""A table with a header: one column is the label, the others are numbers. Shapes: N rows, D columns."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from fitserve_training.data.dataset import DataSet
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import COUNTERS, IDENTIFIERS, check_present
from fitserve_training.data.own.targets import number, targets_of
from fitserve_training.errors import UsageError

FIRST_LINE = 2
_FEWEST_ROWS = 4
_OTHER_MARKS = ";\t|"


def load_table(path: Path, label: str, task: str, held_out_share: float, seed: int) -> DataSet:
    """Reads a .csv file: inputs are float32 (N, D), all columns but the label's and those of row numbers, in order.

    Args:
        path: UTF-8, first line the column names.
        label: Name of the label's column.
        task: `classification`, `regression` or `auto`.
        held_out_share: Share of the rows held out.
        seed: Decides which.

    Raises:
        UsageError: no such column, or a cell that is no number; the message names line and column.
    """
    header, rows = read_rows(path)
    place = label_place(path, header, label)
    dropped = [i for i, name in enumerate(header) if i != place and _is_index(name, [row[i] for row in rows])]
    kept = [i for i in range(len(header)) if i != place and i not in dropped]
    if not kept:
        raise UsageError(f"data {path}: expected a column to learn from, got only row numbers beside {header[place]!r}")
    values = [
        [number(row[i], f"{path} line {line}, column {header[i]!r}") for i in kept]
        for line, row in enumerate(rows, start=FIRST_LINE)
    ]
    targets = targets_of(path, [row[place] for row in rows], FIRST_LINE, task)
    inputs = torch.tensor(values, dtype=torch.float32)
    train, held_out = hold_out((inputs,), targets.values, held_out_share, seed)
    what = f"{len(targets.names)} classes" if targets.names else "one value"
    columns = ", ".join(header[i] for i in kept)
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    return DataSet(
        name=str(path),
        source=f"{len(rows):,} rows of {path}: {header[place]!r} ({what}) from {columns} ({counts})",
        train=train,
        held_out=held_out,
        class_names=targets.names,
        note="; ".join((targets.note, *(_dropped_note(header[i]) for i in dropped))),
    )


def label_place(path: Path, header: Sequence[str], label: str) -> int:
    """Finds the label's column.

    Raises:
        UsageError: there is none of that name.
    """
    if label.strip() not in header or not label.strip():
        hint = "--set data.label=COLUMN" if not label else f"a column {label!r}"
        raise UsageError(f"data {path}: expected {hint}, the columns are {', '.join(header)}")
    return header.index(label.strip())


def _is_index(name: str, cells: Sequence[str]) -> bool:
    """Says whether a column only numbers or names the rows: called like one, and another value in every row."""
    if len({cell.strip() for cell in cells}) < len(cells):
        return False
    return bool(IDENTIFIERS.fullmatch(name)) or (
        bool(COUNTERS.fullmatch(name)) and all(cell.strip().isdigit() for cell in cells)
    )


def _dropped_note(name: str) -> str:
    return f"column {name!r} is left out, for it only numbers the rows (rename it to keep it)"


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Reads a .csv file of at least two columns and four rows: its column names, without space around, and its rows.

    Raises:
        UsageError: it is no such table; the message names the line.
    """
    check_present(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"data {path}: expected a table in UTF-8, got {error}") from None
    if lines and len(lines[0]) == 1 and any(mark in lines[0][0] for mark in _OTHER_MARKS):
        raise UsageError(f"{path} line 1: expected commas between the columns, got {lines[0][0][:80]!r}")
    if len(lines) < 1 + _FEWEST_ROWS or len(lines[0]) < 2:
        raise UsageError(
            f"data {path}: expected a header of two columns and {_FEWEST_ROWS} rows, got {len(lines)} lines"
        )
    header = [name.strip() for name in lines[0]]
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise UsageError(f"{path} line 1: expected a name of its own for each column, got {twice[0]!r} twice")
    for line, row in enumerate(lines[1:], start=FIRST_LINE):
        if len(row) != len(header):
            raise UsageError(f"{path} line {line}: expected {len(header)} cells as in the header, got {len(row)}")
    return header, lines[1:]
