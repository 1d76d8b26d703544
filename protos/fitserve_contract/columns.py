"""Columns of a table as a model takes them: what each one is, and how its cells are spelled.

A version that was trained on a table carries this as `columns.json`. Training encodes by it, the served graph is made
from it, and the client reads a table by it, so that all three take a cell for the same.
Shapes: B rows, D numbers, K categories.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

from fitserve_contract.tensor_bytes import Array

COLUMNS_FILE: Final = "columns.json"

JOINED_INPUT: Final = "x"
"""The one input of a table of plain numbers, FP32 (B, D)."""

OTHER, MISSING, FIRST_CODE = 0, 1, 2
"""Codes of a category: one that is unknown or rare, an empty cell, and the first category of the vocabulary."""

_DIGITS: Final = r"([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})"
_GROUPS: Final = r"[1-9][0-9]{0,2}(,[0-9]{3}){1,6}(\.[0-9]{0,30})?"

MOST_SEPARATORS: Final = 6
"""Thousands separators that an amount has at most."""

NUMBER_PATTERN: Final = rf"[+-]?{_DIGITS}([eE][+-]?[0-9]{{1,4}})?"
"""A plain number, without space around."""

AMOUNT_PATTERN: Final = rf"[ \t]*[+-]?({_DIGITS}([eE][+-]?[0-9]{{1,2}})?|{_GROUPS})[ \t]*%?[ \t]*"
"""A number that may have thousands separators and a percent sign. Its length and exponent are bounded, so that float64
holds each. RE2 and Python read the pattern alike."""

MISSING_PATTERN: Final = r"[ \t]*([-?.]|--|#?[nN]/?[aA]|<NA>|[nN][aA][nN]|[nN][uU][lL][lL]|[nN][oO][nN][eE])?[ \t]*"
"""Cells of numbers that stand for no value: empty, `-`, `--`, `.`, `?`, `NA`, `N/A`, `#N/A`, `<NA>`, `NaN`,
`null`, `None`."""

_NUMBER: Final = re.compile(NUMBER_PATTERN)
_AMOUNT: Final = re.compile(AMOUNT_PATTERN)
_MISSING: Final = re.compile(MISSING_PATTERN)
_GROUPED: Final = re.compile(rf"[+-]?{_GROUPS}")
_CODE: Final = re.compile(r"[+-]?0[0-9]+")
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_MOST_EXACT: Final = 2.0**53
_LARGEST: Final = float(np.finfo(np.float32).max)


class ColumnError(ValueError):
    """A cell, column or description that is not as expected; the message names it."""


class ColumnKind(Enum):
    """What a column holds: `number` is FP32 (B, 1), the others are BYTES (B, 1) as the file spells them."""

    NUMBER = "number"
    AMOUNT = "amount"
    CATEGORY = "category"


class CellKind(Enum):
    """What one cell looks like."""

    EMPTY = "missing value"
    NUMBER = "number"
    AMOUNT = "number with thousands separators or a percent sign"
    CODE = "digits behind a zero"
    WORD = "text"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        name: In the table's first line, without space around.
        input: The served input that takes it; JOINED_INPUT for all columns of a table of plain numbers.
        kind: What it holds.
        categories: Of a category: the vocabulary, each with its spellings in the training rows, the trimmed one first.
        has_missing: Of a number or an amount: whether training rows lack it, so that the model knows what that means.
    """

    name: str
    input: str
    kind: ColumnKind
    categories: tuple[tuple[str, ...], ...] = ()
    has_missing: bool = False

    @property
    def code_count(self) -> int:
        """Codes that a cell of a category may have."""
        return FIRST_CODE + len(self.categories)

    def codes(self) -> dict[str, int]:
        """Returns the code of every known spelling: as in the training rows, trimmed, with one space on either side,
        composed and decomposed (NFC, NFD). Any other text is OTHER."""
        found = dict.fromkeys(_spaced(""), MISSING)
        for code, spellings in enumerate(self.categories, start=FIRST_CODE):
            trimmed, *others = spellings
            for form in (trimmed, unicodedata.normalize("NFD", trimmed)):
                found.update(dict.fromkeys(_spaced(form), code))
            found.update(dict.fromkeys(others, code))
        return found


@dataclass(frozen=True, slots=True)
class TableColumns:
    """The columns of a table that a model takes.

    Args:
        columns: In the order of the table.
        label: The column of labels.
        is_column_wise: Whether plain numbers alone have an input each, too.
    """

    columns: tuple[Column, ...]
    label: str
    is_column_wise: bool = False

    @property
    def is_joined(self) -> bool:
        """Whether all columns are one input: a table of plain numbers."""
        return not self.is_column_wise and all(column.kind is ColumnKind.NUMBER for column in self.columns)

    @property
    def numbers(self) -> tuple[Column, ...]:
        """Columns of numbers, in order."""
        return tuple(column for column in self.columns if column.kind is not ColumnKind.CATEGORY)

    @property
    def categories(self) -> tuple[Column, ...]:
        """Columns of categories, in order."""
        return tuple(column for column in self.columns if column.kind is ColumnKind.CATEGORY)

    def inputs(self, cells: Mapping[str, Sequence[str]], first_line: int = 1) -> dict[str, Array]:
        """Turns the cells of a table into the served inputs, (B, 1) each, or `x` (B, D).

        Args:
            cells: Column name to the cells of B rows.
            first_line: Line number of the first row, for messages.

        Raises:
            ColumnError: a column is missing, or a cell is no number; the message names the column and the line.
        """
        missing = [column.name for column in self.columns if column.name not in cells]
        if missing:
            raise ColumnError(f"expected a column {missing[0]!r}, the columns are {', '.join(map(repr, cells))}")
        arrays = [served_cells(column, cells[column.name], first_line) for column in self.columns]
        if self.is_joined:
            return {JOINED_INPUT: np.concatenate(arrays, axis=1)}
        return {column.input: array for column, array in zip(self.columns, arrays, strict=True)}

    def to_bytes(self) -> bytes:
        """Writes the columns as JSON; the same columns give the same bytes."""
        entries = [
            {"name": one.name, "input": one.input, "kind": one.kind.value}
            | (
                {"categories": [list(each) for each in one.categories]}
                if one.kind is ColumnKind.CATEGORY
                else {"has_missing": one.has_missing}
            )
            for one in self.columns
        ]
        return (json.dumps({"label": self.label, "columns": entries}, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> TableColumns:
        """Reads what `to_bytes` wrote.

        Raises:
            ColumnError: it is something else.
        """
        try:
            document = json.loads(content)
            columns = tuple(map(_column, document["columns"]))
            return TableColumns(columns, _text(document["label"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ColumnError(f"{COLUMNS_FILE}: expected the columns of a table, got {str(error)[:120]}") from None


def cell_kind(cell: str) -> CellKind:
    """Tells what a cell looks like."""
    trimmed = cell.strip()
    if _MISSING.fullmatch(trimmed):
        return CellKind.EMPTY
    if _CODE.fullmatch(trimmed):
        return CellKind.CODE
    if _NUMBER.fullmatch(trimmed):
        return CellKind.NUMBER
    return CellKind.AMOUNT if _AMOUNT.fullmatch(cell) else CellKind.WORD


def trimmed_category(cell: str) -> str:
    """Returns the spelling that stands for a category or a label: without space around, composed (NFC)."""
    return unicodedata.normalize("NFC", cell.strip())


def read_number(cell: str) -> float:
    """Reads a cell of a `number` column; NaN where it is missing.

    Raises:
        ColumnError: it is no number that float32 holds.
    """
    trimmed = cell.strip()
    if _MISSING.fullmatch(trimmed):
        return math.nan
    if not _NUMBER.fullmatch(trimmed) or abs(value := float(trimmed)) > _LARGEST:
        raise ColumnError(f"expected a finite number, got {cell[:80]!r}")
    return value


def read_amount(cell: str) -> float:
    """Reads a cell of an `amount` column: a percentage is a hundredth; NaN where it is missing, infinity where it is
    no number, which the model answers with NaN."""
    if _MISSING.fullmatch(cell):
        return math.nan
    if not _AMOUNT.fullmatch(cell):
        return math.inf
    value = float(cell.replace(",", "").replace("%", ""))
    return value / 100 if "%" in cell else value


def served_cells(column: Column, cells: Sequence[str], first_line: int = 1) -> Array:
    """Turns the cells of one column into its input, (B, 1).

    Raises:
        ColumnError: a cell is no number; the message names the column and the line, of which the first is `first_line`.
    """
    if column.kind is not ColumnKind.NUMBER:
        texts = np.empty((len(cells), 1), object)
        texts[:, 0] = [cell.encode() for cell in cells]
        return texts
    known: dict[str, float] = {}
    for cell in dict.fromkeys(cells):
        try:
            known[cell] = read_number(cell)
        except ColumnError as error:
            line = first_line + cells.index(cell)
            raise ColumnError(f"line {line}, column {column.name!r}: {error}") from None
    return np.array([known[cell] for cell in cells], np.float64).astype(np.float32).reshape(-1, 1)


def plain_label(label: str) -> str:
    """Returns a label without space around, composed (NFC), and a number without thousands separators."""
    trimmed = trimmed_category(label)
    return trimmed.replace(",", "") if _GROUPED.fullmatch(trimmed) else trimmed


def class_name(label: str) -> str:
    """Returns the name of a label's class: without space around, a whole number in its shortest spelling; digits with
    leading zeros are a code and stay as they are, and so do whole numbers that float64 does not hold."""
    trimmed = plain_label(label)
    if not _NUMBER.fullmatch(trimmed) or (trimmed != "0" and trimmed.startswith("0") and trimmed.isdigit()):
        return trimmed
    if _INTEGER.fullmatch(trimmed):
        return str(int(trimmed))
    value = float(trimmed)
    return str(int(value)) if value.is_integer() and abs(value) <= _MOST_EXACT else trimmed


def _spaced(text: str) -> Iterator[str]:
    yield from (text, f" {text}", f"{text} ", f" {text} ")


def _column(entry: Any) -> Column:
    categories = tuple(tuple(map(_text, spellings)) for spellings in entry.get("categories", ()))
    if not all(categories):
        raise ColumnError("a category without a spelling")
    kind, has_missing = ColumnKind(entry["kind"]), entry.get("has_missing", False) is True
    return Column(_text(entry["name"]), _text(entry["input"]), kind, categories, has_missing)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ColumnError(f"{type(value).__name__} instead of a text")
    return value
