"""A table with a header: one column is the label, the others are numbers. Shapes: N rows, D columns."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import torch

from fitserve_training.data.dataset import DataSet
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import check_present
from fitserve_training.data.own.targets import number, targets_of
from fitserve_training.errors import UsageError

_FIRST_LINE = 2
_FEWEST_ROWS = 4
_OTHER_MARKS = ";\t|"


def load_table(path: Path, label: str, task: str, held_out_share: float, seed: int) -> DataSet:
    """Reads a .csv file: inputs are float32 (N, D), all columns but the label's in their order.

    Args:
        path: UTF-8, first line the column names.
        label: Name of the label's column.
        task: `classification`, `regression` or `auto`.
        held_out_share: Share of the rows held out.
        seed: Decides which.

    Raises:
        UsageError: no such column, or a cell that is no number; the message names line and column.
    """
    header, rows = _read(path)
    if label not in header:
        hint = "--set data.label=COLUMN" if not label else f"a column {label!r}"
        raise UsageError(f"data {path}: expected {hint}, the columns are {', '.join(header)}")
    place = header.index(label)
    columns = [name for name in header if name != label]
    values = [
        [
            number(cell, f"{path} line {line}, column {name!r}")
            for name, cell in zip(header, row, strict=True)
            if name != label
        ]
        for line, row in enumerate(rows, start=_FIRST_LINE)
    ]
    targets, names = targets_of(path, [row[place] for row in rows], _FIRST_LINE, task)
    train, held_out = hold_out((torch.tensor(values, dtype=torch.float32),), targets, held_out_share, seed)
    what = f"{len(names)} classes" if names else "regression"
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    return DataSet(
        name=str(path),
        source=f"{len(rows):,} rows of {path}: {label!r} ({what}) from {', '.join(columns)} ({counts})",
        train=train,
        held_out=held_out,
        class_names=names,
    )


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
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
    for line, row in enumerate(lines[1:], start=_FIRST_LINE):
        if len(row) != len(header):
            raise UsageError(f"{path} line {line}: expected {len(header)} cells as in the header, got {len(row)}")
    return header, lines[1:]
