"""Large tables of plain numbers as data sets over a mapped file. Shapes: N rows, D columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitserve_contract.columns import COLUMNS_FILE, JOINED_INPUT, Column, ColumnKind, TableColumns
from fitserve_contract.csv_table import FIRST_LINE
from fitserve_contract.printable import printable
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.hold_out import hold_out_rows
from fitserve_training.data.own.plain_tables import PlainTable, read_plain_table
from fitserve_training.data.own.table_settings import TableSettings, column_notes, listed_columns
from fitserve_training.data.own.targets import CLASSIFICATION, Targets, check_values, targets_of, value_targets
from fitserve_training.data.store.array_file import Array
from fitserve_training.data.store.tensors import tensor_of
from fitserve_training.errors import UsageError

_FEWEST_ROWS = 4
_ROWS_AT_ONCE = 1 << 18


def load_large_table(path: Path, settings: TableSettings) -> DataSet | None:
    """Reads a .csv file of plain numbers: input `x` float32 (N, D), mapped; None where it holds something else.

    Raises:
        UsageError: it is no such table, or a cell may be a mistake; the message names line and column.
    """
    table = read_plain_table(path, settings)
    if table is None or len(table.values) < _FEWEST_ROWS:
        return None
    targets = _targets(path, table, settings.task)
    train, held_out = hold_out_rows(targets.values, settings.held_out_share, settings.seed)
    has_missing, is_empty = _missing(table, train)
    if is_empty.any() or not table.names:
        return None  # which columns are of use is for the path in memory to say
    columns = tuple(
        Column(name, JOINED_INPUT, ColumnKind.NUMBER, has_missing=missing)
        for name, missing in zip(table.names, has_missing.tolist(), strict=True)
    )
    described = TableColumns(columns, table.label)
    every = Split((tensor_of(table.values),), targets.values)
    what = f"{len(targets.names)} classes" if targets.names else "one value"
    names = printable(listed_columns(table.names))
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {settings.seed}"
    return DataSet(
        name=str(path),
        source=f"{len(table.values):,} rows of {path}: {table.label!r} ({what}) from {names} ({counts})",
        train=every.subset(train),
        held_out=every.subset(held_out),
        class_names=targets.names,
        note=printable("; ".join((targets.note, *column_notes(described), *table.left_out.values()))),
        files={COLUMNS_FILE: described.to_bytes()},
    )


def _targets(path: Path, table: PlainTable, task: str) -> Targets:
    if table.label_texts:
        texts, labels = table.label_texts, []
        for start in range(0, len(table.label_codes), _ROWS_AT_ONCE):
            labels += [texts[code] for code in table.label_codes[start : start + _ROWS_AT_ONCE].tolist()]
        return targets_of(path, labels, FIRST_LINE, task)
    values: Array = np.asarray(table.label_values)
    if task == CLASSIFICATION:
        raise UsageError(
            f"data {path}: label: got more classes than a table of this size may have; --set data.task=regression if "
            "they are quantities"
        )
    if not (is_finite := np.isfinite(values)).all():
        line = FIRST_LINE + int((~is_finite).argmax())
        raise UsageError(f"{path} line {line}: label: expected a finite number, as in most lines; correct it")
    check_values(values, f"data {path}: label")
    return value_targets(torch.from_numpy(values.astype(np.float32)).unsqueeze(1), task)


def _missing(table: PlainTable, train: Tensor) -> tuple[Array, Array]:
    """Says of each column whether the training rows lack it anywhere, and whether everywhere."""
    has_missing, is_empty = np.zeros(len(table.names), bool), np.zeros(len(table.names), bool)
    if not table.is_any_missing:
        return has_missing, is_empty
    is_empty[:] = True
    for rows in torch.split(train, _ROWS_AT_ONCE):
        missing = np.isnan(table.values[rows.numpy()])
        has_missing |= missing.any(axis=0)
        is_empty &= missing.all(axis=0)
    return has_missing, is_empty
