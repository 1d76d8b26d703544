"""Large tables of plain numbers, read once by pyarrow, block by block, into a mapped file. Shapes: N rows, D columns.

What a cell means, which columns are left out and what is refused is as for a table in memory: cells that are not plain
numbers are told by the same functions, and one that may be a mistake is named by line and column.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_contract.columns import NUMBER_PATTERN, CellKind, ColumnError, cell_kind, read_number
from fitserve_contract.csv_table import FIRST_LINE, check_row, checked_header
from fitserve_training.data.own.column_kinds import ColumnTally
from fitserve_training.data.own.kinds import COUNTERS, IDENTIFIERS
from fitserve_training.data.own.table_settings import TableSettings, label_place, named_columns
from fitserve_training.data.store.array_file import Array, ArrayPlan
from fitserve_training.data.store.bar import counted
from fitserve_training.data.store.rows import Writer, key_of, stored_rows
from fitserve_training.errors import UsageError

_FORMAT: Final = "plain-table-1"
_BLOCK_BYTES: Final = 8 << 20
_CODE_PATTERN: Final = r"^[+-]?0[0-9]+$"
_LARGEST: Final = float(np.finfo(np.float32).max)
_MOST_LABELS: Final = 100_000
"""Different texts of labels that are kept; where there are more, only their numbers are."""

_TALLIED_ROWS: Final = 2_000
"""Of the first rows every cell is tallied, which says how many numbers a column has beside what is none."""

_MOST_TOLD: Final = 1_000
"""Different texts behind the first rows that are tallied: more are no mistakes, whatever they are."""

_WHOLE_UP_TO: Final = 2.0**24
"""float32 has each whole number up to here."""


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


class _MixedError(Exception):
    """Columns hold more than plain numbers."""


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
    except _MixedError:
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
            return UsageError(f"data {self.path}: expected a table in UTF-8, got {found}")
        return UsageError(f"data {self.path}: expected a table in UTF-8, got {str(error).splitlines()[0]}")


def _first_row(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next((row for row in csv.reader(file) if row), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ColumnError(f"{path}: expected a table in UTF-8, got {error}") from None


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

    _, facts = stored_rows(key_of(_FORMAT, "index", content, called), {}, "row numbers", fill, _BLOCK_BYTES**2)
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
    columns = [_NumberColumn(source.path, name) for name in names]
    labels = _Labels()
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
    if too_large := [column.too_large for column in columns if column.too_large]:
        raise UsageError(too_large[0])
    if empty := [column.name for column in columns if column.missing_count == count]:
        raise _EmptyColumnsError(empty)
    return {
        "row_count": count,
        "is_any_missing": any(column.missing_count for column in columns),
        "notes": {column.name: note for column in columns if (note := column.note)},
        "label_texts": labels.texts,
    }


@dataclass
class _NumberColumn:
    """Reads the cells of a column, and keeps what is no plain number; `too_large` names what float32 does not hold."""

    path: Path
    name: str
    missing_count: int = 0
    too_large: str = ""
    _is_whole: bool = True
    _is_rounded: bool = False
    _is_odd: bool = False
    _told: set[str] = field(default_factory=set)
    _tally: ColumnTally = field(init=False)

    def __post_init__(self) -> None:
        self._tally = ColumnTally(self.path, self.name)

    @property
    def note(self) -> str:
        """What is lost of the column; empty where nothing is."""
        if not (self._is_whole and self._is_rounded):
            return ""
        return f"float32 rounds its whole numbers, some of which are above {int(_WHOLE_UP_TO):,}"

    def read(self, cells: Any, first_row: int) -> Array:
        """Reads a block as float64 (B,), NaN where a cell is missing or no number."""
        import pyarrow
        import pyarrow.compute as pc

        if first_row < _TALLIED_ROWS:
            self._tally.add(cells.slice(0, _TALLIED_ROWS - first_row).to_pylist(), FIRST_LINE + first_row)
        is_plain = pc.match_substring_regex(cells, f"^({NUMBER_PATTERN})$")
        plain = cells if pc.all(is_plain).as_py() else pc.if_else(is_plain, cells, None)
        values: Array = pc.cast(plain, pyarrow.float64()).to_numpy(zero_copy_only=False)
        odd = ~is_plain.to_numpy(zero_copy_only=False) | _are_codes(cells, values)
        if odd.any():
            values = self._with_odd(values.copy(), cells, np.flatnonzero(odd), first_row)
        if not self.too_large and (too_large := np.abs(values) > _LARGEST).any():
            row = int(too_large.argmax())
            self.too_large = f"{self.path} line {FIRST_LINE + first_row + row}, column {self.name!r}: "
            self.too_large += f"expected a finite number, got {cells[row].as_py()[:80]!r}"
        self.missing_count += int(np.isnan(values).sum())
        self._note(values[~np.isnan(values)])
        return values

    def _with_odd(self, values: Array, cells: Any, rows: Array, first_row: int) -> Array:
        texts = cells.take(rows).to_pylist()
        known = {text: self._odd_value(text) for text in set(texts)}
        values[rows] = [known[text] for text in texts]
        for row, text in zip((first_row + rows).tolist(), texts, strict=True):
            if row >= _TALLIED_ROWS and text not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(text)
                if cell_kind(text) is not CellKind.NUMBER:
                    self._tally.add((text,), FIRST_LINE + row)
        return values

    def _odd_value(self, text: str) -> float:
        if cell_kind(text) in (CellKind.EMPTY, CellKind.NUMBER):
            try:
                return read_number(text)
            except ColumnError:
                return float("inf")
        self._is_odd = True
        return float("nan")

    def _note(self, present: Array) -> None:
        self._is_whole = self._is_whole and bool((present == np.round(present)).all())
        self._is_rounded = self._is_rounded or bool((np.abs(present) > _WHOLE_UP_TO).any())

    def check(self, *, is_over: bool) -> None:
        """Decides by all that is no plain number so far.

        Args:
            is_over: Whether that is all. Before, what looks like a mistake may turn out to be a category.

        Raises:
            UsageError: it may be a mistake; the message names the line.
            _MixedError: the column holds something else than numbers.
        """
        if not self._is_odd:
            return
        try:
            self._tally.decide(is_category=False)
        except UsageError:
            if is_over:
                raise
            return
        raise _MixedError


def _are_codes(cells: Any, values: Array) -> Array:
    """Tells digits behind a zero, such as 007, which are no numbers."""
    import pyarrow.compute as pc

    found = np.zeros(len(values), bool)
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(values == np.round(values))
    if len(rows):
        matched = pc.match_substring_regex(cells.take(rows) if len(rows) < len(values) else cells, _CODE_PATTERN)
        found[rows] = matched.to_numpy(zero_copy_only=False)
    return found


@dataclass
class _Labels:
    """Reads labels as codes of their texts, as long as these are few, and as numbers."""

    texts: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)
    _are_few: bool = True

    def read(self, cells: Any) -> tuple[Array, Array]:
        """Gives codes int32 (B,) and numbers float64 (B,), NaN where a text is none."""
        encoded = cells.dictionary_encode()
        texts, places = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
        numbers = _numbers(encoded.dictionary, texts)[places]
        if self._are_few:
            for text in texts:
                self._codes.setdefault(text, len(self._codes))
            self._are_few = len(self._codes) <= _MOST_LABELS
            self.texts = list(self._codes) if self._are_few else []
        if not self._are_few:
            return np.zeros(len(places), np.int32), numbers
        return np.array([self._codes[text] for text in texts], np.int32)[places], numbers


def _numbers(cells: Any, texts: Sequence[str]) -> Array:
    import pyarrow
    import pyarrow.compute as pc

    try:
        found: Array = pc.cast(cells, pyarrow.float64()).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid:
        return np.array([_number(text) for text in texts], np.float64)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
