"""Columns of a table in front of a network: one input for each, encoded inside the served graph.

Shapes: B rows, D numbers, K categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
import torch

from fitserve_contract.column_encoding import CODES, NUMBERS, encoded
from fitserve_contract.columns import Column, ColumnKind, TableColumns
from fitserve_exporters.candidate.candidate import Arrays, InputSpec
from fitserve_exporters.candidate.examples import BATCH
from fitserve_exporters.preprocessing.columns_graph import attach_columns

_MOST_SPELLINGS: Final = 64
"""Known spellings of a category that are tried."""

_MOST_AMOUNTS: Final = 32
"""Columns of amounts that are tried with texts that are no numbers."""

_AMOUNTS: Final = (
    b"1,234",
    b"",
    b"12.5%",
    b"-1,234,567.25",
    b" 3 % ",
    b"1e5",
    b"NA",
    b"+.5",
    b"0",
    b"?",
    b" 7. ",
    b"9" * 30,
)
_UNREADABLE: Final = (b"1.234,56", b"x", b"inf", b"1e99", b"5 %%", "\u0661".encode())


@dataclass(frozen=True)
class ColumnsFront:
    """Encodes the columns of a table; `encode` is the reference of what `attach` puts into the graph.

    Args:
        table: The columns, not joined.
    """

    table: TableColumns

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The served inputs: FP32 or BYTES, (B, 1) each."""
        return tuple(
            InputSpec(column.input, torch.float32 if column.kind is ColumnKind.NUMBER else None, (BATCH, 1))
            for column in self.table.columns
        )

    @cached_property
    def module_inputs(self) -> tuple[InputSpec, ...]:
        """The network's inputs: numbers float32 (B, D) and codes int64 (B, K), as far as there are such columns."""
        counts = {NUMBERS: len(self.table.numbers), CODES: len(self.table.categories)}
        dtypes = {NUMBERS: torch.float32, CODES: torch.int64}
        return tuple(InputSpec(name, dtypes[name], (BATCH, count)) for name, count in counts.items() if count)

    def encode(self, inputs: Arrays) -> Arrays:
        """Computes the network's inputs from the served ones."""
        return encoded(self.table, inputs)

    def probes(self, row: Arrays) -> Arrays:
        """Makes rows of known and unknown categories, missing values, and amounts of every form; then rows of which
        one amount alone is no number."""
        kinds = {column.input: _readable(column) for column in self.table.columns}
        count = max(map(len, kinds.values()))
        amounts = [one.input for one in self.table.columns if one.kind is ColumnKind.AMOUNT][:_MOST_AMOUNTS]
        bad = [(name, cell) for name in amounts for cell in _UNREADABLE]
        rows = {}
        for name, cells in kinds.items():
            array = np.repeat(row[name], count + len(bad), axis=0)
            array[:count, 0] = [cells[place % len(cells)] for place in range(count)]
            for place, (other, cell) in enumerate(bad, start=count):
                if other == name:
                    array[place, 0] = cell
            rows[name] = array
        return rows

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Returns a model whose inputs are the columns, in order, in place of the network's."""
        return attach_columns(model, self.table)


def _readable(column: Column) -> list[Any]:
    if column.kind is ColumnKind.NUMBER:
        return [np.nan, 0.0, -1.0, 1e4]
    if column.kind is ColumnKind.AMOUNT:
        return list(_AMOUNTS)
    unknown = [b"", b"no such category", b"x" * 1000, "\u00e9\u4e2d".encode()]
    return [*unknown, *(spelling.encode() for spelling in list(column.codes())[:_MOST_SPELLINGS])]
