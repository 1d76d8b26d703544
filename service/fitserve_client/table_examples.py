"""Examples from a CSV file, cell by cell as it spells them: the served graph reads categories and amounts itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fitserve_client.client import Client
from fitserve_client.errors import FileError
from fitserve_client.example_files import PICTURE, TABLE, Examples, read_examples
from fitserve_client.models import VersionDetails
from fitserve_client.pictures import BICUBIC, FILTERS
from fitserve_contract.checkpoints import PREPROCESSOR_FILE
from fitserve_contract.columns import (
    COLUMNS_FILE,
    Column,
    ColumnError,
    ColumnKind,
    TableColumns,
    class_name,
    plain_label,
)
from fitserve_contract.csv_table import FIRST_LINE, CsvTable, read_csv
from fitserve_contract.datatypes import BYTES
from fitserve_contract.manifest import Manifest, ManifestError
from fitserve_contract.tasks import Task, TaskKind
from fitserve_contract.tensor_bytes import Array

_LABEL = "label"
"""The column of labels of a version that does not name one."""

_SHOWN = 5


def examples_of(client: Client, path: Path, details: VersionDetails, *, is_inverted: bool = False) -> Examples:
    """Reads the examples of a file, a table among others, for a version of a model.

    Raises:
        FileError: the file is not there, is no such file, or does not suit the model.
    """
    if path.suffix.lower() != TABLE:
        resample = _resize_filter(client, details) if path.suffix.lower() == PICTURE else BICUBIC
        return read_examples(path, details, is_inverted=is_inverted, resample=resample)
    if is_inverted:
        raise FileError(f"file '{path}': expected a .png file for --invert, got '{path.suffix}'")
    try:
        return table_examples(path, details, _columns(client, details))
    except ColumnError as error:
        text = str(error).removeprefix(str(path)).lstrip(": ")
        raise FileError(f"file '{path}': {text}") from None


def _resize_filter(client: Client, details: VersionDetails) -> int:
    """Returns Pillow's number of the filter that a version's pictures are resized by, as its training did."""
    if PREPROCESSOR_FILE not in _files(details):
        return BICUBIC
    content = client.version_file(details.model, PREPROCESSOR_FILE, version=details.version.version)
    try:
        resample = json.loads(content).get("resample")
    except (ValueError, AttributeError):
        resample = None
    return resample if resample in FILTERS else BICUBIC


def table_examples(path: Path, details: VersionDetails, columns: TableColumns) -> Examples:
    """Reads a table: each column of the model by name, in any order, and the labels where there are any.

    Args:
        path: A .csv file.
        details: The version that is to take the rows.
        columns: What it takes.

    Raises:
        ColumnError: no such table, a column that is missing, or a cell that cannot be read; the message names it.
    """
    table = read_csv(path)
    if not table.rows:
        raise ColumnError("expected a row below the header, got none")
    inputs = columns.inputs({name: table.cells(name) for name in table.header}, FIRST_LINE)
    known = {column.name for column in columns.columns} | {columns.label}
    unused = [name for name in table.header if name not in known]
    shown = ", ".join(map(repr, unused[:_SHOWN])) + (f" and {len(unused) - _SHOWN} more" if unused[_SHOWN:] else "")
    notes = (f"file '{path}': the model takes no column {shown}",) if unused else ()
    return Examples(inputs, _labels(table, columns.label, details.task), notes, columns.label)


def _labels(table: CsvTable, label: str, task: Task | None) -> Array | None:
    if task is None or label not in table.header:
        return None
    cells = table.cells(label)
    if task.kind is TaskKind.CLASSIFICATION:
        return _class_indices(cells, label, task.class_names)
    return _values(cells, label) if task.kind is TaskKind.REGRESSION else None


def _class_indices(cells: Sequence[str], label: str, class_names: Sequence[str]) -> Array | None:
    """Gives the class of each row; None of a table that has no labels yet, only empty cells."""
    if not any(cell.strip() for cell in cells):
        return None
    places = {name: place for place, name in enumerate(class_names)}
    for line, cell in enumerate(cells, start=FIRST_LINE):
        if class_name(cell) not in places:
            known = ", ".join(map(repr, class_names[:_SHOWN])) + (", …" if class_names[_SHOWN:] else "")
            raise ColumnError(f"line {line}, column {label!r}: expected a class of {known}, got {cell[:80]!r}")
    return np.array([places[class_name(cell)] for cell in cells], np.int64)


def _values(cells: Sequence[str], label: str) -> Array | None:
    """Gives the value of each row, (B, 1); None of a table that has no labels yet, only empty cells."""
    if not any(cell.strip() for cell in cells):
        return None
    values = np.empty((len(cells), 1), np.float32)
    for place, cell in enumerate(cells):
        try:
            values[place, 0] = float(plain_label(cell))
        except ValueError:
            raise ColumnError(
                f"line {FIRST_LINE + place}, column {label!r}: expected a number, got {cell[:80]!r}"
            ) from None
    return values


def _columns(client: Client, details: VersionDetails) -> TableColumns:
    """Gives the columns that a version carries, or those of its signature: one for each input (B, 1)."""
    if COLUMNS_FILE in _files(details):
        content = client.version_file(details.model, COLUMNS_FILE, version=details.version.version)
        return TableColumns.from_bytes(content)
    kinds = {BYTES: ColumnKind.CATEGORY, "FP32": ColumnKind.NUMBER}
    for spec in details.inputs:
        if spec.datatype not in kinds or spec.shape is None or tuple(spec.shape[1:]) != (1,):
            raise ColumnError(
                f"expected a model that takes a table: one input (B, 1) of FP32 or BYTES for each column; model "
                f"'{details.model}' has input '{spec.name}' {spec.datatype} {spec.shape} and carries no {COLUMNS_FILE}"
            )
    columns = tuple(Column(spec.name, spec.name, kinds[spec.datatype]) for spec in details.inputs)
    return TableColumns(columns, _LABEL, is_column_wise=True)


def _files(details: VersionDetails) -> tuple[str, ...]:
    try:
        return Manifest.from_bytes(details.manifest_json.encode()).files_for_callers if details.manifest_json else ()
    except ManifestError:
        return ()
