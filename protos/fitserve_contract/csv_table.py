"""A CSV file with a header, as training and the client read it: cells stay the texts that they are."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fitserve_contract.columns import ColumnError

FIRST_LINE: Final = 2
"""Line of the first row, where no cell holds a line's end."""

_OTHER_MARKS: Final = ";\t|"
_EXCEL_MARK: Final = "sep="
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A table.

    Args:
        header: Column names, without space around, each once.
        rows: As many cells each.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def cells(self, name: str) -> list[str]:
        """Returns the cells of a column."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def read_csv(path: Path) -> CsvTable:
    """Reads a CSV file: UTF-8 with or without a byte order mark, commas, quotes, lines of any ending.

    Raises:
        ColumnError: it is no such table; the message names the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [tuple(row) for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ColumnError(f"{path}: expected a table in UTF-8, got {not_text(path, error)}") from None
    if not lines:
        raise ColumnError(f"{path}: expected a header and rows, got an empty file")
    header = checked_header(path, lines[0])
    for line, row in enumerate(lines[1:], start=FIRST_LINE):
        check_row(path, line, row, header)
    return CsvTable(header, tuple(lines[1:]))


def not_text(path: Path, error: Exception) -> str:
    """Says why a file is no text in UTF-8, and how it becomes one."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    with path.open("rb") as file:
        is_wide = file.read(2) in _UTF_16
    found = "UTF-16" if is_wide else f"{error.object[error.start : error.start + 1]!r}, which is none"
    return f'{found}; save it as "CSV UTF-8" or by iconv -f {"UTF-16" if is_wide else "WINDOWS-1252"} -t UTF-8'


def checked_header(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """Returns the names in a table's first line, without space around.

    Raises:
        ColumnError: they are not apart by commas, or one is there twice.
    """
    if len(cells) == 1 and any(mark in cells[0] for mark in _OTHER_MARKS):
        cure = "write commas between columns and a point before decimals"
        raise ColumnError(f"{path} line 1: expected commas between the columns, got {cells[0][:80]!r}; {cure}")
    if cells and cells[0].strip().lower().startswith(_EXCEL_MARK):
        raise ColumnError(f"{path} line 1: expected the names of the columns, got {cells[0][:80]!r}; remove the line")
    header = tuple(name.strip() for name in cells)
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        cure = "rename one of them" if twice[0] else "name the columns, or remove the empty ones"
        raise ColumnError(f"{path} line 1: expected a name of its own for each column, got {twice[0]!r} twice; {cure}")
    return header


def check_row(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> None:
    """Checks that a row has a cell for each column.

    Raises:
        ColumnError: it has not.
    """
    if len(row) != len(header):
        cure = "put quotes around cells with commas" if len(row) > len(header) else "add the missing cells"
        raise ColumnError(f"{path} line {line}: expected {len(header)} cells as in the header, got {len(row)}; {cure}")
