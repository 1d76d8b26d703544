"""A table with a header: one column is the label, the others are numbers, amounts and categories.

Reading, telling the kinds of columns and encoding are apart: a reader that gives blocks of rows can take the place of
`read_rows`, as kinds are tallied and cells encoded block by block. Shapes: N rows, D numbers, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitserve_contract.column_encoding import encoded
from fitserve_contract.columns import COLUMNS_FILE, ColumnError, ColumnKind, TableColumns
from fitserve_contract.csv_table import FIRST_LINE, CsvTable, read_csv
from fitserve_contract.printable import printable
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.column_kinds import ColumnTally
from fitserve_training.data.own.column_specs import described
from fitserve_training.data.own.kinds import check_present
from fitserve_training.data.own.large_tables import load_large_table
from fitserve_training.data.own.table_settings import (
    TableSettings,
    column_notes,
    label_place,
    listed_columns,
    named_columns,
)
from fitserve_training.data.own.targets import targets_of
from fitserve_training.data.store.rows import is_on_disk
from fitserve_training.errors import UsageError

_FEWEST_ROWS = 4
_MEMORY_PER_BYTE = 16
"""Cells in memory, an object each, take so many times the bytes of their file."""

_IN_MEMORY = "read into memory, for not all columns are plain numbers"


def load_table(path: Path, settings: TableSettings) -> DataSet:
    """Reads a .csv file: inputs are `x` float32 (N, D) of a table of plain numbers, else numbers (N, D) where NaN is
    missing, and codes int64 (N, K).

    Args:
        path: UTF-8, first line the column names.
        settings: How.

    Raises:
        UsageError: no such column, or a cell that may be a mistake; the message names line and column.
    """
    check_present(path)
    is_large = is_on_disk(_MEMORY_PER_BYTE * path.stat().st_size)
    if is_large and (data := load_large_table(path, settings)) is not None:
        return data
    table = read_rows(path)
    label = table.header[label_place(path, table.header, settings.label)]
    cells = {name: table.cells(name) for name in table.header if name != label}
    kinds, left_out = _kinds(path, cells, settings)
    targets = targets_of(path, table.cells(label), FIRST_LINE, settings.task)
    everything = (torch.arange(len(table.rows)),)
    train, held_out = hold_out(everything, targets.values, settings.held_out_share, settings.seed)
    trained = {name: _rows(cells[name], train.inputs[0]) for name in kinds}
    output = "logits" if targets.names else "y"
    columns, useless = described(kinds, trained, label, output)
    left_out |= {name: f"column {name!r} is left out, {reason}" for name, reason in useless.items()}
    if not columns.columns:
        raise UsageError(
            f"data {path}: expected a column to learn from, got only row numbers beside {label!r} and columns "
            f"without use: {'; '.join(left_out.values())}"
        )
    served = TableRows(columns, cells, train.inputs[0], held_out.inputs[0])
    what = f"{len(targets.names)} classes" if targets.names else "one value"
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {settings.seed}"
    names = printable(listed_columns([column.name for column in columns.columns]))
    return DataSet(
        name=str(path),
        source=f"{len(table.rows):,} rows of {path}: {label!r} ({what}) from {names} ({counts})",
        train=Split(served.network_inputs(train.inputs[0]), train.targets),
        held_out=Split(served.network_inputs(held_out.inputs[0]), held_out.targets),
        class_names=targets.names,
        note=printable("; ".join((targets.note, *column_notes(columns), *left_out.values(), *[_IN_MEMORY] * is_large))),
        files={COLUMNS_FILE: columns.to_bytes()},
        served=None if columns.is_joined else served,
    )


@dataclass(frozen=True)
class TableRows:
    """The rows of a table as callers of the model give them, and as its network takes them.

    Args:
        columns: What the model takes.
        cells: Column name to the cells of all rows.
        train_rows: Which are trained on, int64.
        held_out_rows: Which are held out, int64.
    """

    columns: TableColumns
    cells: Mapping[str, Sequence[str]]
    train_rows: Tensor
    held_out_rows: Tensor

    def train(self, places: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Gives training rows by their places in the split."""
        return self._inputs(self.train_rows[torch.from_numpy(places)])

    def held_out(self) -> dict[str, np.ndarray[Any, Any]]:
        """Gives all held-out rows."""
        return self._inputs(self.held_out_rows)

    def network_inputs(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Gives rows as the network takes them: `x`, or numbers and codes as far as there are such columns."""
        inputs = self._inputs(rows)
        arrays = inputs if self.columns.is_joined else encoded(self.columns, inputs)
        return tuple(torch.from_numpy(array) for array in arrays.values())

    def _inputs(self, rows: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        return self.columns.inputs({one.name: _rows(self.cells[one.name], rows) for one in self.columns.columns})


def _kinds(
    path: Path, cells: Mapping[str, Sequence[str]], settings: TableSettings
) -> tuple[dict[str, ColumnKind], dict[str, str]]:
    """Tells the kinds of the columns; gives those that are kept, and for the others a sentence why they are not."""
    categories = named_columns(path, "data.categories", settings.categories, cells)
    drop = named_columns(path, "data.drop", settings.drop, cells)
    kinds: dict[str, ColumnKind] = {}
    left_out = {name: f"column {name!r} is left out, as data.drop says" for name in drop}
    for name in cells:
        if name in drop:
            continue
        tally = ColumnTally(path, name)
        tally.add(cells[name], FIRST_LINE)
        if name not in categories and tally.is_index():
            left_out[name] = f"column {name!r} is left out, for it only numbers the rows (rename it to keep it)"
            continue
        kind, reason = tally.decide(is_category=name in categories)
        if kind is None:
            left_out[name] = f"column {name!r} is left out, {reason}"
            continue
        kinds[name] = kind
        if reason:
            left_out[name] = f"column {name!r}: {reason}"
    return kinds, left_out


def _rows(cells: Sequence[str], rows: Tensor) -> list[str]:
    return list(map(cells.__getitem__, rows.tolist()))


def read_rows(path: Path) -> CsvTable:
    """Reads a .csv file of at least two columns and four rows.

    Raises:
        UsageError: it is no such table; the message names the line.
    """
    check_present(path)
    try:
        table = read_csv(path)
    except ColumnError as error:
        raise UsageError(f"data {error}") from None
    if len(table.rows) < _FEWEST_ROWS or len(table.header) < 2:
        raise UsageError(
            f"data {path}: expected a header of two columns and {_FEWEST_ROWS} rows, got {len(table.rows) + 1} lines"
        )
    return table
