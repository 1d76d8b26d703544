"""Plain text tables for people: aligned, as wide as the terminal, and safe to print whatever a cell holds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from fitserve_contract.printable import printable

_GAP: Final = "  "
_ELLIPSIS: Final = "…"
_NARROWEST: Final = 8
"""No column is cut below this many cells."""

_NUMBER: Final = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%)?|NaN|-?inf|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lays out a table; columns of numbers are aligned to the right.

    Args:
        header: One title per column.
        rows: As many cells each.
        width: Terminal cells to stay within, by cutting the widest columns; None cuts nothing.

    Returns:
        Lines without trailing blanks.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = _fitted([max(map(display_width, column)) for column in columns], width)
    is_right = [bool(rows) and all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    return [
        _GAP.join(_padded(cell, size, right) for cell, size, right in zip(row, widths, is_right, strict=True)).rstrip()
        for row in cells
    ]


def display_width(text: str) -> int:
    """Counts the terminal cells that a text takes; wide characters take two, combining ones none."""
    return sum(_char_width(char) for char in text)


def cut(text: str, width: int) -> str:
    """Cuts a text to a width, with an ellipsis in place of what is lost."""
    if display_width(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += _char_width(char)
        if used > width - 1:
            break
        kept += char
    return kept + _ELLIPSIS


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _fitted(widths: list[int], width: int | None) -> list[int]:
    fitted = list(widths)
    while width is not None and sum(fitted) + len(_GAP) * (len(fitted) - 1) > width and max(fitted) > _NARROWEST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _padded(cell: str, width: int, is_right: bool) -> str:
    shown = cut(cell, width)
    blanks = " " * (width - display_width(shown))
    return blanks + shown if is_right else shown + blanks
