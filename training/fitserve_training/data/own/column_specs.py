"""From the kinds of columns to their description: names of inputs, and vocabularies of the training rows alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from fitserve_contract.columns import (
    JOINED_INPUT,
    CellKind,
    Column,
    ColumnKind,
    TableColumns,
    cell_kind,
    read_amount,
    read_number,
    trimmed_category,
)

_FEWEST: Final = 2
"""A category of fewer training rows is rare: it is taken for an unknown one."""


def described(
    kinds: Mapping[str, ColumnKind], cells: Mapping[str, Sequence[str]], label: str, output: str
) -> tuple[TableColumns, dict[str, str]]:
    """Describes the columns by their training rows.

    Args:
        kinds: Column name to kind, in the order of the table.
        cells: Column name to the cells of the training rows.
        label: The column of labels.
        output: Name of the served output, which no input may have.

    Returns:
        The columns, and the name of each that is left out with the reason: one that is empty or never varies.
    """
    reasons = {name: _uselessness(kind, cells[name]) for name, kind in kinds.items()}
    kept = {name: kind for name, kind in kinds.items() if not reasons[name]}
    is_joined = set(kept.values()) <= {ColumnKind.NUMBER}
    columns: list[Column] = []
    taken = {output}
    for place, (name, kind) in enumerate(kept.items(), start=1):
        title = JOINED_INPUT if is_joined else _input_name(name, place, taken, kinds)
        taken.add(title)
        columns.append(_column(name, title, kind, cells[name]))
    return TableColumns(tuple(columns), label), {name: reason for name, reason in reasons.items() if reason}


def _input_name(name: str, place: int, taken: Collection[str], names: Collection[str]) -> str:
    """Names the input of a column as the column, or otherwise where that is empty or is the output's name."""
    if name and name not in taken:
        return name
    title = f"{name}_column" if name else f"column_{place}"
    while title in taken or title in names:
        title += "_"
    return title


def _uselessness(kind: ColumnKind, cells: Sequence[str]) -> str:
    if kind is not ColumnKind.CATEGORY:
        is_empty = all(cell_kind(cell) is CellKind.EMPTY for cell in set(cells))
        return "for it is empty in every row to train on" if is_empty else ""
    counts = _counts(cells)
    if not any(count >= _FEWEST for value, count in counts.items() if value):
        return "for no value recurs in the rows to train on"
    return "for it is the same in every row to train on" if len(counts) == 1 else ""


def _column(name: str, title: str, kind: ColumnKind, cells: Sequence[str]) -> Column:
    if kind is not ColumnKind.CATEGORY:
        read = read_number if kind is ColumnKind.NUMBER else read_amount
        return Column(name, title, kind, has_missing=any(math.isnan(read(cell)) for cell in set(cells)))
    spellings: dict[str, dict[str, None]] = {}
    for cell in dict.fromkeys(cells):
        spellings.setdefault(trimmed_category(cell), {})[cell] = None
    counts = _counts(cells)
    kept = sorted(value for value, count in counts.items() if value and count >= _FEWEST)
    return Column(name, title, kind, tuple(tuple(dict.fromkeys((value, *spellings[value]))) for value in kept))


def _counts(cells: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for cell, count in Counter(cells).items():
        value = trimmed_category(cell)
        counts[value] = counts.get(value, 0) + count
    return counts
