"""The encoding of columns in the graph against its reference, to the bit, whatever the cells hold."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fitserve_contract.column_encoding import CODES, NUMBERS, encoded
from fitserve_contract.columns import AMOUNT_PATTERN, MISSING_PATTERN, Column, ColumnKind, TableColumns
from fitserve_contract.joinability.proof import prove_rows
from fitserve_exporters.preprocessing.columns_graph import attach_columns
from fitserve_exporters.sessions import CPU, OrtSession

JOBS = Column("job", "job", ColumnKind.CATEGORY, (("Köchin", "Köchin  "), ("Never married",), ("clerk",)))
TABLE = TableColumns(
    (
        Column("age", "age", ColumnKind.NUMBER),
        JOBS,
        Column("gain", "capital gain", ColumnKind.AMOUNT),
        Column("zip", "zip", ColumnKind.CATEGORY, (("01234",), ("99999",))),
    ),
    "income",
)
FIRST_ROW = ("17", "clerk", "1,234", "01234")

CELLS = st.one_of(
    st.text(max_size=20),
    st.text("0123456789,.%+-eE \t?NnAaul", max_size=12),
    st.from_regex(AMOUNT_PATTERN, fullmatch=True),
    st.from_regex(MISSING_PATTERN, fullmatch=True),
    st.sampled_from(sorted(JOBS.codes())),
    st.sampled_from(
        ["1.234,56", "1,23", "12,345,678.9", "∞", "inf", "nan", "1e5", "1e99", "0x10", "1_000", "١٢", "$5"]
    ),
)


def network(names: list[str], opset: int = 18) -> onnx.ModelProto:
    """Hands numbers and codes on."""
    types = {NUMBERS: TensorProto.FLOAT, CODES: TensorProto.INT64}
    nodes = [helper.make_node("Identity", [f"in_{name}"], [name]) for name in names]
    inputs = [helper.make_tensor_value_info(f"in_{name}", types[name], ["batch", None]) for name in names]
    outputs = [helper.make_tensor_value_info(name, types[name], ["batch", None]) for name in names]
    graph = helper.make_graph(nodes, "network", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def attached(table: TableColumns) -> bytes:
    """Puts the columns in front, under their own names."""
    names = [name for name, columns in ((NUMBERS, table.numbers), (CODES, table.categories)) if columns]
    model = attach_columns(network(names), table)
    renamed = {value.name: one.input for value, one in zip(model.graph.input, table.columns, strict=True)}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for value in model.graph.input:
        value.name = renamed[value.name]
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


@cache
def session() -> OrtSession:
    return OrtSession(attached(TABLE), CPU)


def inputs_of(rows: list[tuple[str, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    names = [column.name for column in TABLE.columns]
    return TABLE.inputs(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@given(st.lists(st.tuples(st.sampled_from(["17", "", "-0.5"]), CELLS, CELLS, CELLS), min_size=1, max_size=6))
@example([("17", "a\0b", "1\0", "\0")])
@example([("17", "", "", "")])
@example([("NA", " Never married ", "-1,234,567,890,123,456,789.25 %", "1234")])
@settings(deadline=None, max_examples=300)
def test_the_graph_encodes_as_the_reference_does(rows: list[tuple[str, ...]]) -> None:
    inputs = inputs_of(rows)

    found, expected = session().run(inputs), encoded(TABLE, inputs)

    for name in (NUMBERS, CODES):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=str(rows))
        assert found[name].dtype == expected[name].dtype


@given(CELLS)
@settings(deadline=None)
def test_no_row_changes_another(cell: str) -> None:
    alone = session().run(inputs_of([FIRST_ROW]))
    beside = session().run(inputs_of([("", cell, cell, cell), FIRST_ROW, ("1", "x", "1,234,567.5 %", "y")]))

    for name, array in alone.items():
        np.testing.assert_array_equal(beside[name][1:2], array)


def test_rows_are_proved_joinable() -> None:
    assert prove_rows(attached(TABLE)).problem == ""


@pytest.mark.parametrize("kind", list(ColumnKind))
def test_a_table_of_one_column_is_encoded(kind: ColumnKind) -> None:
    table = TableColumns((Column("a", "a", kind, (("1",),) if kind is ColumnKind.CATEGORY else ()),), "y", True)
    inputs = table.inputs({"a": ["1", "2", ""]})

    found, expected = OrtSession(attached(table), CPU).run(inputs), encoded(table, inputs)

    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_categories_alone_need_no_newer_operators_than_the_network() -> None:
    table = TableColumns((JOBS,), "y")
    model = onnx.load_model_from_string(attached(table))
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "ai.onnx.ml": 3}


def test_ten_thousand_categories_are_told_apart() -> None:
    names = [f"name {number}" for number in range(10_000)]
    table = TableColumns((Column("a", "a", ColumnKind.CATEGORY, tuple((name,) for name in names)),), "y")
    inputs = table.inputs({"a": [*names, "name 10000"]})

    codes = OrtSession(attached(table), CPU).run(inputs)[CODES]

    assert codes.reshape(-1).tolist() == [*range(2, 10_002), 0]
