"""Large tables of plain numbers, read once by pyarrow, block by block, into a mapped file. Shapes: N rows, D columns.

What a cell means, which columns are left out and what is refused is as for a table in memory: cells that are not plain
numbers are told by the same functions, and one that may be a mistake is named by line and column.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_contract.columns import ColumnError
from fitserve_contract.csv_table import FIRST_LINE, check_row, checked_header, not_text
from fitserve_training.data.own.kinds import COUNTERS, IDENTIFIERS
from fitserve_training.data.own.plain_columns import Labels, MixedColumnError, NumberColumn
from fitserve_training.data.own.table_settings import TableSettings, label_place, named_columns
from fitserve_training.data.store.array_file import Array, ArrayPlan
from fitserve_training.data.store.bar import counted
from fitserve_training.data.store.rows import Writer, key_of, stored_rows
from fitserve_training.errors import UsageError

_FORMAT: Final = "plain-table-1"
_BLOCK_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class PlainTable:
    """A table whose columns, but for the label's, are plain numbers.

    Args:
        names: Of the columns, in order.
        values: float32 (N, D), where NaN is missing.
        is_any_missing: Whether there is a NaN.
        label: Name of the label's column.
        label_texts: The different texts of labels; empty where there are too many.
        label_codes: Which of them each row has, int32 (N,).
        label_values: Each row's label as a number, float64 (N,); NaN where it is none.
        left_out: Column name to a sentence that says why it is left out, or what is lost of it.
    """

    names: tuple[str, ...]
    values: Array
    is_any_missing: bool
    label: str
    label_texts: tuple[str, ...]
    label_codes: Array
    label_values: Array
    left_out: Mapping[str, str]


class _EmptyColumnsError(Exception):
    """Columns hold nothing; the argument is their names."""


def read_plain_table(path: Path, settings: TableSettings) -> PlainTable | None:
    """Reads a .csv file of plain numbers, or finds it read; None where it holds categories or amounts.

    Raises:
        UsageError: it is no table, or a cell may be a mistake; the message names line and column.
    """
    try:
        if not (raw := _first_row(path)):
            return None  # an empty file is refused as such
        header = checked_header(path, raw)
    except ColumnError as error:
        raise UsageError(f"data {error}") from None
    label = header[label_place(path, header, settings.label)]
    features = [name for name in header if name != label]
    if named_columns(path, "data.categories", settings.categories, dict.fromkeys(features)):
        return None
    dropped = named_columns(path, "data.drop", settings.drop, dict.fromkeys(features))
    left_out = {name: f"column {name!r} is left out, as data.drop says" for name in dropped}
    content, most_rows = _content(path)
    source = _Source(path, raw, header)
    try:
        for name in _index_columns(source, [name for name in features if name not in dropped], content):
            left_out[name] = f"column {name!r} is left out, for it only numbers the rows (rename it to keep it)"
        while True:
            names = tuple(name for name in features if name not in left_out)
            try:
                return _stored(source, names, label, (content, most_rows), left_out)
            except _EmptyColumnsError as error:
                left_out |= {name: f"column {name!r} is left out, for every cell is empty" for name in error.args[0]}
    except MixedColumnError:
        return None


@dataclass(frozen=True)
class _Source:
    """A file with the names of its columns, as they are written and without space around."""

    path: Path
    raw: Sequence[str]
    header: Sequence[str]

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        """Gives blocks of rows: the number of the first, from 0, and an array of texts for each of some columns.

        Raises:
            UsageError: it is no table; the message names the line.
        """
        import pyarrow
        from pyarrow import csv as arrow_csv

        raw = [self.raw[self.header.index(name)] for name in names]
        row = 0
        try:
            reader = arrow_csv.open_csv(
                self.path,
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=raw, column_types=dict.fromkeys(raw, pyarrow.string())
                ),
            )
            for batch in reader:
                yield row, batch.columns
                row += len(batch)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> UsageError:
        """Looks for the line as a table in memory is read; pyarrow counts lines otherwise, or not at all."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                rows = (row for row in csv.reader(file) if row)
                for line, row in enumerate(rows, start=FIRST_LINE - 1):
                    check_row(self.path, line, row, self.header)
        except ColumnError as found:
            return UsageError(f"data {found}")
        except (OSError, UnicodeDecodeError, csv.Error) as found:
            return UsageError(f"data {self.path}: expected a table in UTF-8, got {not_text(self.path, found)}")
        return UsageError(f"data {self.path}: expected a table in UTF-8, got {str(error).splitlines()[0]}")


def _first_row(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next((row for row in csv.reader(file) if row), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ColumnError(f"{path}: expected a table in UTF-8, got {not_text(path, error)}") from None


def _content(path: Path) -> tuple[str, int]:
    """Hashes a file; gives also how many rows it has at most."""
    digest, ends, pairs = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK_BYTES):
            digest.update(chunk)
            ends += chunk.count(b"\n") + chunk.count(b"\r")
            pairs += chunk.count(b"\r\n")
    return digest.hexdigest(), ends - pairs + 1


def _index_columns(source: _Source, names: Sequence[str], content: str) -> list[str]:
    """Finds columns that are called like row numbers or identifiers and have another text in every row."""
    called = [name for name in names if IDENTIFIERS.fullmatch(name) or COUNTERS.fullmatch(name)]
    if not called:
        return []

    def fill(_writer: Writer) -> dict[str, Any]:
        return {"found": [name for name in called if _is_index(source, name)]}

    size = source.path.stat().st_size
    _, facts = stored_rows(key_of(_FORMAT, "index", content, called), {}, "row numbers", fill, size)
    return list(facts["found"])


def _is_index(source: _Source, name: str) -> bool:
    import pyarrow.compute as pc

    must_be_whole = not IDENTIFIERS.fullmatch(name)
    hashes = []
    for _, (cells,) in source.blocks([name]):
        trimmed = pc.utf8_trim_whitespace(cells)
        if must_be_whole and not pc.all(pc.utf8_is_digit(trimmed)).as_py():
            return False
        texts = trimmed.to_pylist()
        found = np.fromiter((hash(text) for text in texts), np.int64, len(texts))
        if len(np.unique(found)) < len(found):  # most columns that recur do so soon
            return False
        hashes.append(found)
    every = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.int64)
    return bool((every[1:] != every[:-1]).all())


def _stored(
    source: _Source, names: tuple[str, ...], label: str, content: tuple[str, int], left_out: Mapping[str, str]
) -> PlainTable:
    digest, most_rows = content
    plans = {
        "values": ArrayPlan("float32", (most_rows, len(names))),
        "label_codes": ArrayPlan("int32", (most_rows,)),
        "label_values": ArrayPlan("float64", (most_rows,)),
    }
    key = key_of(_FORMAT, digest, names, label)
    fill = partial(_fill, source, names, label, most_rows)
    arrays, facts = stored_rows(key, plans, "numbers of a table", fill, source.path.stat().st_size)
    count = facts["row_count"]
    notes = {name: f"column {name!r}: {note}" for name, note in facts["notes"].items()}
    return PlainTable(
        names,
        arrays["values"][:count],
        facts["is_any_missing"],
        label,
        tuple(facts["label_texts"]),
        arrays["label_codes"][:count],
        arrays["label_values"][:count],
        {**left_out, **notes},
    )


def _fill(source: _Source, names: Sequence[str], label: str, most_rows: int, writer: Writer) -> dict[str, Any]:
    columns = [NumberColumn(source.path, name) for name in names]
    labels = Labels()
    count = 0
    with counted("rows of the table", most_rows) as done:
        for first, (*cells, label_cells) in source.blocks([*names, label]):
            count = first + len(label_cells)
            values = np.empty((len(label_cells), len(names)), np.float32)
            with np.errstate(over="ignore"):  # such numbers are named below
                for place, (column, texts) in enumerate(zip(columns, cells, strict=True)):
                    values[:, place] = column.read(texts, first)
            codes, numbers = labels.read(label_cells)
            for name, rows in (("values", values), ("label_codes", codes), ("label_values", numbers)):
                writer.write(name, first, rows)
            for column in columns:
                column.check(is_over=False)
            done(len(label_cells))
    for column in columns:
        column.check(is_over=True)
    if empty := [column.name for column in columns if column.missing_count == count]:
        raise _EmptyColumnsError(empty)
    return {
        "row_count": count,
        "is_any_missing": any(column.missing_count for column in columns),
        "notes": {column.name: note for column in columns if (note := column.note)},
        "label_texts": labels.texts,
    }
