"""What the columns of a table are, told by all of their cells; a block of rows at a time.

Plain numbers make a number column; numbers of which some have thousands separators or a percent sign an amount; other
texts that recur are categories. What only numbers or names the rows is left out, and what may be a mistake is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from fitserve_contract.columns import (
    CellKind,
    ColumnError,
    ColumnKind,
    cell_kind,
    read_amount,
    read_number,
    trimmed_category,
)
from fitserve_training.data.own.kinds import COUNTERS, IDENTIFIERS
from fitserve_training.errors import UsageError

_MOST_RARE: Final = 20
"""Texts that a column may have without any of them recurring much."""

_LARGEST: Final = float(np.finfo(np.float32).max)

_FEW_WORDS: Final = 2
_FEW_SHARE: Final = 0.05
"""So few different texts among numbers are taken for mistakes."""

_DECIMAL_COMMA: Final = re.compile(r"[+-]?([0-9]{1,3}([. ][0-9]{3})+|[0-9]+),[0-9]+\s*%?")
_CURRENCY: Final = r"(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY|CAD|AUD|INR|CNY|Rs\.?|kr\.?)"
_MONEY: Final = re.compile(rf"[+-]?\s*({_CURRENCY}\s*[+-]?[0-9][0-9.,]*|[0-9][0-9.,]*\s*{_CURRENCY})")
_SPACED: Final = re.compile(r"[+-]?[1-9][0-9]{0,2}([ '’\u00a0\u202f][0-9]{3})+([.,][0-9]+)?")
_MINUS: Final = re.compile(r"\(\s*[0-9][0-9.,]*\s*\)|[−–]\s?[0-9][0-9.,]*|[0-9][0-9.,]*\s?[-−]")
"""Negative numbers as bookkeepers and word processors write them."""

_UNIT: Final = re.compile(r"[+-]?[0-9][0-9.,]*\s*[^\W\d_][^\W_]{0,9}(/[^\W\d_]+)?")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*|[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}.*", re.DOTALL)


@dataclass
class ColumnTally:
    """The different cells of one column.

    Args:
        path: For error messages.
        name: Of the column.
    """

    path: Path
    name: str
    _counts: Counter[str] = field(default_factory=Counter)
    _lines: dict[str, int] = field(default_factory=dict)

    def add(self, cells: Sequence[str], first_line: int) -> None:
        """Counts the cells of a block of rows.

        Args:
            cells: In order.
            first_line: Line number of the first.
        """
        lines = range(first_line + len(cells) - 1, first_line - 1, -1)
        # Of equal cells the last one is kept: from behind, the first in the file.
        self._lines = dict(zip(reversed(cells), lines, strict=True)) | self._lines
        self._counts.update(cells)

    def is_index(self) -> bool:
        """Tells whether the column only numbers or names the rows: called like one, and another value in every row."""
        cells = {cell.strip() for cell in self._counts}
        if len(cells) < self._counts.total():
            return False
        return bool(IDENTIFIERS.fullmatch(self.name)) or (
            bool(COUNTERS.fullmatch(self.name)) and all(cell.isdigit() for cell in cells)
        )

    def decide(self, *, is_category: bool) -> tuple[ColumnKind | None, str]:
        """Decides what the column holds.

        Args:
            is_category: The user says that its values are categories.

        Returns:
            The kind and a note for people, which may be empty; None and the reason where the column is left out.

        Raises:
            UsageError: numbers with a few texts among them, or amounts that cannot be read; the message names the line.
        """
        kinds = {cell: cell_kind(cell) for cell in self._counts}
        present = {kind for kind in kinds.values() if kind is not CellKind.EMPTY}
        if not present and not is_category:
            return None, "for every cell is empty"
        if is_category:
            return ColumnKind.CATEGORY, ""
        if present == {CellKind.NUMBER}:
            return ColumnKind.NUMBER, self._lost_digits(kinds)
        if present <= {CellKind.NUMBER, CellKind.AMOUNT}:
            self._check_readable()
            return ColumnKind.AMOUNT, ""
        if CellKind.WORD in present:
            self._check_amounts()
            self._check_unmixed([cell for cell, kind in kinds.items() if kind is CellKind.WORD], len(kinds))
        return self._texts()

    def _texts(self) -> tuple[ColumnKind | None, str]:
        counts: dict[str, int] = {}
        for cell, count in self._counts.items():
            trimmed = trimmed_category(cell)
            counts[trimmed] = counts.get(trimmed, 0) + count
        counts.pop("", None)
        is_unique = len(counts) > _MOST_RARE and 2 * len(counts) > sum(counts.values())
        hint = "; columns of its year, month or weekday would do" if self._is_mostly(_DATE.fullmatch) else ""
        hint = "; numbers without their unit would do" if self._is_mostly(_UNIT.fullmatch) else hint
        if is_unique:
            return None, f"for most rows have a text of their own there{hint} (--set data.categories=… keeps it)"
        return ColumnKind.CATEGORY, ""

    def _lost_digits(self, kinds: dict[str, CellKind]) -> str:
        """Warns of whole numbers, such as times and identifiers, that float32 cannot tell apart."""
        wide = np.unique(np.array([self._number(cell) for cell, kind in kinds.items() if kind is CellKind.NUMBER]))
        lost = len(wide) - len(np.unique(wide.astype(np.float32)))
        is_whole = bool((wide == np.round(wide)).all())
        return f"float32 does not tell {lost:,} of its {len(wide):,} values from others" if lost and is_whole else ""

    def _number(self, cell: str) -> float:
        try:
            return read_number(cell)
        except ColumnError:
            raise self._refusal(cell, "expected a finite number", "correct it") from None

    def _check_readable(self) -> None:
        """Refuses amounts that the served graph cannot read: beyond float32, or with other spaces than blanks."""
        for cell in self._counts:
            if abs(read_amount(cell)) > _LARGEST:
                raise self._refusal(cell, "expected an amount such as 1,234.5", "correct it")

    def _check_amounts(self) -> None:
        for pattern, expected, cure in (
            (_DECIMAL_COMMA, "numbers such as 1,234.56", "write a point before the decimals"),
            (_MONEY, "numbers without a currency", "remove the currency signs"),
            (_SPACED, "numbers such as 1,234.56", "remove what is between the thousands"),
            (_MINUS, "negative numbers such as -5", "write a hyphen before them"),
        ):
            words = (cell for cell in self._counts if cell_kind(cell) is CellKind.WORD)
            cell = next((cell for cell in words if pattern.fullmatch(cell.strip())), None)
            if cell is not None and self._is_mostly(partial(_is_number_or, pattern)):
                raise self._refusal(cell, f"expected {expected}", cure)

    def _check_unmixed(self, words: Sequence[str], distinct_count: int) -> None:
        is_few = len(words) <= max(_FEW_WORDS, _FEW_SHARE * distinct_count)
        if is_few and 2 * len(words) < sum(cell_kind(cell) is not CellKind.EMPTY for cell in self._counts):
            first = min(words, key=self._lines.__getitem__)
            raise self._refusal(first, "expected a finite number", "correct it")

    def _refusal(self, cell: str, expected: str, cure: str) -> UsageError:
        settings = f"--set data.categories={self.name} for a category of each value, or --set data.drop={self.name}"
        others = settings if self.name else "give the column a name to set how it is read"
        line = self._lines[cell]
        return UsageError(
            f"{self.path} line {line}, column {self.name!r}: {expected}, got {cell[:80]!r}; {cure}, or {others}"
        )

    def _is_mostly(self, matches: Callable[[str], object]) -> bool:
        present = {cell: count for cell, count in self._counts.items() if cell_kind(cell) is not CellKind.EMPTY}
        return 2 * sum(count for cell, count in present.items() if matches(cell.strip())) > sum(present.values())


def _is_number_or(pattern: re.Pattern[str], cell: str) -> bool:
    return cell_kind(cell) in (CellKind.NUMBER, CellKind.AMOUNT) or pattern.fullmatch(cell) is not None
