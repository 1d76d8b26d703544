"""Columns of a large table, read block by block: plain numbers, and labels. Shapes: B rows of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_contract.columns import NUMBER_PATTERN, CellKind, ColumnError, cell_kind, read_number
from fitserve_contract.csv_table import FIRST_LINE
from fitserve_training.data.own.column_kinds import ColumnTally
from fitserve_training.data.store.array_file import Array
from fitserve_training.errors import UsageError

_LARGEST: Final = float(np.finfo(np.float32).max)
_CODE_PATTERN: Final = r"^[+-]?0[0-9]+$"
_MOST_LABELS: Final = 100_000
"""Different texts of labels that are kept; where there are more, only their numbers are."""

_TALLIED_ROWS: Final = 2_000
"""Of the first rows every cell is tallied, which says how many numbers a column has beside what is none."""

_MOST_TOLD: Final = 1_000
"""Different texts behind the first rows that are tallied: more are no mistakes, whatever they are."""

_WHOLE_UP_TO: Final = 2.0**24
"""float32 has each whole number up to here."""


class MixedColumnError(Exception):
    """Columns hold more than plain numbers."""


@dataclass
class NumberColumn:
    """Reads the cells of a column, and tallies what float32 does not hold or is no plain number."""

    path: Path
    name: str
    missing_count: int = 0
    _is_whole: bool = True
    _is_rounded: bool = False
    _is_odd: bool = False
    _is_too_large: bool = False
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
        if (too_large := np.abs(values) > _LARGEST).any() and not self._is_too_large:
            self._is_too_large = True
            row = int(too_large.argmax())
            if first_row + row >= _TALLIED_ROWS:
                self._tally.add((cells[row].as_py(),), FIRST_LINE + first_row + row)
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
            UsageError: it may be a mistake, or float32 does not hold it; the message names the line.
            MixedColumnError: the column holds something else than numbers.
        """
        if not (self._is_odd or self._is_too_large):
            return
        try:
            self._tally.decide(is_category=False)
        except UsageError:
            if is_over:
                raise
            return
        raise MixedColumnError


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
class Labels:
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
