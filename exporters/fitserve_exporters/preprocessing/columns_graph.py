"""The ONNX graph that encodes the columns of a table; `fitserve_contract.column_encoding` is its reference.

A number is handed on. A category goes through a LabelEncoder of every known spelling. An amount is text whose
thousands separators are taken out: ONNX has no operator for that, so the text is split at them and its parts are
joined. Texts that are no number are replaced before the cast, which would refuse the whole batch for one of them: a
missing one by "nan", any other by "inf".
Shapes: B rows, K categories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from fitserve_contract.columns import AMOUNT_PATTERN, MISSING_PATTERN, MOST_SEPARATORS, Column, ColumnKind, TableColumns
from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.candidate.examples import BATCH

STRING_OPSET: Final = 20
"""The opset that has RegexFullMatch, StringConcat and StringSplit."""

LEARNERS: Final = "ai.onnx.ml"
LEARNERS_OPSET: Final = 3

_PREFIX: Final = "fitserve_columns"


def attach_columns(model: onnx.ModelProto, table: TableColumns) -> onnx.ModelProto:
    """Puts the columns in front of a network.

    Args:
        model: Its inputs are the numbers float32 (B, D) and the codes int64 (B, K), as far as there are such columns.
            May be changed.
        table: The columns, not joined.

    Returns:
        The model with one input per column, in their order, under names of its own.
    """
    if any(column.kind is ColumnKind.AMOUNT for column in table.columns):
        model = version_converter.convert_version(model, STRING_OPSET)
    if table.categories:
        model.opset_import.append(helper.make_opsetid(LEARNERS, LEARNERS_OPSET))
    weights = {tensor.name for tensor in model.graph.initializer}
    network_inputs = [value.name for value in model.graph.input if value.name not in weights]
    front = _Front()
    ends = {column.name: front.column(place, column) for place, column in enumerate(table.columns)}
    for name, columns in zip(network_inputs, filter(None, (table.numbers, table.categories)), strict=True):
        front.node("Concat", [ends[column.name] for column in columns], output=name, axis=1)
    graph = model.graph
    nodes, kept = list(graph.node), [value for value in graph.input if value.name in weights]
    del graph.node[:], graph.input[:]
    graph.node.extend([*front.nodes, *nodes])
    graph.initializer.extend(front.constants)
    graph.input.extend([*(_declared(place, column) for place, column in enumerate(table.columns)), *kept])
    return model


def _declared(place: int, column: Column) -> onnx.ValueInfoProto:
    element = TensorProto.FLOAT if column.kind is ColumnKind.NUMBER else TensorProto.STRING
    return helper.make_tensor_value_info(_input(place), element, (BATCH, 1))


def _input(place: int) -> str:
    return f"{_PREFIX}_input_{place}"


class _Front:
    """Nodes and constants as they are made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def column(self, place: int, column: Column) -> str:
        """Adds the encoding of a column; returns the name of its value, float32 or int64 (B, 1)."""
        if column.kind is ColumnKind.NUMBER:
            return _input(place)
        return self._code(place, column) if column.kind is ColumnKind.CATEGORY else self._amount(_input(place))

    def node(self, operator: str, inputs: Sequence[str], *, output: str = "", domain: str = "", **more: Any) -> str:
        """Adds a node of one output; returns its name."""
        name = output or f"{_PREFIX}_{len(self.nodes)}"
        made = helper.make_node(operator, inputs, [name], name=f"{_PREFIX}_{operator}_{len(self.nodes)}", **more)
        made.domain = domain
        self.nodes.append(made)
        return name

    def _constant(self, value: Array) -> str:
        name = f"{_PREFIX}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _string(self, text: str) -> str:
        return self._constant(np.array(text, object))

    def _code(self, place: int, column: Column) -> str:
        codes = column.codes()
        return self.node(
            "LabelEncoder",
            [_input(place)],
            domain=LEARNERS,
            keys_strings=list(codes),
            values_int64s=list(codes.values()),
            default_int64=0,
        )

    def _amount(self, cell: str) -> str:
        is_number = self.node("RegexFullMatch", [cell], pattern=AMOUNT_PATTERN)
        is_missing = self.node("RegexFullMatch", [cell], pattern=MISSING_PATTERN)
        is_share = self.node("RegexFullMatch", [cell], pattern=r"[^%]*%[^%]*")
        other = self.node("Where", [is_missing, self._string("nan"), self._string("inf")])
        readable = self.node("Where", [is_number, cell, other])
        number = self.node("Cast", [self._without_percent(self._without_separators(readable))], to=TensorProto.DOUBLE)
        hundredth = self.node("Div", [number, self._constant(np.array(100.0))])
        value = self.node("Where", [is_share, hundredth, number])
        return self.node("Cast", [value], to=TensorProto.FLOAT)

    def _without_separators(self, text: str) -> str:
        joined, *others = self._parts(text, ",", MOST_SEPARATORS + 1)
        for part in others:
            joined = self.node("StringConcat", [joined, part])
        return joined

    def _without_percent(self, text: str) -> str:
        (number,) = self._parts(text, "%", 1)
        return number

    def _parts(self, text: str, delimiter: str, count: int) -> Iterator[str]:
        """Yields the first parts of a text; it gets as many delimiters behind it as parts are wanted, so that each row
        has exactly one part more and no row changes the shape of another."""
        ended = self.node("StringConcat", [text, self._string(delimiter * count)])
        pieces, counts = (f"{_PREFIX}_{kind}_{len(self.nodes)}" for kind in ("pieces", "counts"))
        split = helper.make_node("StringSplit", [ended], [pieces, counts], delimiter=delimiter, maxsplit=count)
        split.name = f"{_PREFIX}_StringSplit_{len(self.nodes)}"
        self.nodes.append(split)
        for place in range(count):
            yield self.node("Gather", [pieces, self._constant(np.array(place))], axis=-1)
