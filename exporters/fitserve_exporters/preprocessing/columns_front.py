"""Columns of a table in front of a network: one input for each, encoded inside the served graph.

Shapes: B rows, D numbers, K categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx
import torch

from fitserve_contract.column_encoding import CODES, NUMBERS, encoded
from fitserve_contract.columns import ColumnKind, TableColumns
from fitserve_exporters.candidate.candidate import Arrays, InputSpec
from fitserve_exporters.candidate.examples import BATCH
from fitserve_exporters.preprocessing.columns_graph import attach_columns


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

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Returns a model whose inputs are the columns, in order, in place of the network's."""
        return attach_columns(model, self.table)
