"""Columns of a table: how cells are read, how they are spelled, and what a description of them holds."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.column_encoding import CODES, NUMBERS, encoded
from fitserve_contract.columns import (
    FIRST_CODE,
    JOINED_INPUT,
    MISSING,
    OTHER,
    CellKind,
    Column,
    ColumnError,
    ColumnKind,
    TableColumns,
    cell_kind,
    class_name,
    plain_label,
    read_amount,
    read_number,
)
from fitserve_contract.csv_table import read_csv

JOB = Column("job", "job", ColumnKind.CATEGORY, (("Müller", "Müller\t"), ("clerk",)))
AGE = Column("age", "age", ColumnKind.NUMBER, has_missing=True)
GAIN = Column("gain", "gain", ColumnKind.AMOUNT)
TABLE = TableColumns((AGE, JOB, GAIN), "income")


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        (CellKind.EMPTY, ["", "  ", "NA", "n/a", "NaN", "nan", "null", "None", "?", "-", "--", " . ", "#N/A", "<NA>"]),
        (CellKind.NUMBER, ["1", " 1.5 ", "-.5", "+3.", "1e5", "2E-300", "0", "-0.0", "0.5"]),
        (CellKind.AMOUNT, ["1,234", "1,234.5", "-12,345,678", "12%", "12.5 %", " 1,000 % "]),
        (CellKind.CODE, ["01234", "007", "-01"]),
        (CellKind.WORD, ["clerk", "1.234,56", "0,123", "1,23", "1,2345", "inf", "∞", "0x10", "1_000", "١٢", "12 %%"]),
        (CellKind.WORD, ["2024-01-05", "$5", "5 €", "1 234", "1.2.3", "e5", "+", "1,234e5", "%"]),
    ],
)
def test_cells_are_told_apart(kind: CellKind, cells: list[str]) -> None:
    assert {cell: cell_kind(cell) for cell in cells} == dict.fromkeys(cells, kind)


def test_amounts_are_read() -> None:
    read = {"1,234.5": 1234.5, "-12,345,678": -12345678, "12.5%": 0.125, " 3 % ": 0.03, "1e5": 1e5, ".5": 0.5}
    assert {cell: read_amount(cell) for cell in read} == read
    assert all(math.isnan(read_amount(cell)) for cell in ("", "NA", " ? "))
    assert all(read_amount(cell) == math.inf for cell in ("1.234,56", "abc", "inf", "-inf", "1e999", "$5"))


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_every_float32_is_read_back(value: float) -> None:
    assert np.float32(read_number(repr(value))) == np.float32(value)


@pytest.mark.parametrize("cell", ["1e39", "-4e38", "inf", "clerk", "1,234", "12%"])
def test_what_is_no_number_is_refused(cell: str) -> None:
    with pytest.raises(ColumnError, match="expected a finite number"):
        read_number(cell)


def test_spellings_of_a_category_have_one_code() -> None:
    codes = JOB.codes()
    decomposed = unicodedata.normalize("NFD", "Müller")
    assert decomposed != "Müller"
    spellings = ["Müller", " Müller", "Müller ", " Müller ", "Müller\t", decomposed, f" {decomposed}"]
    assert {codes[spelling] for spelling in spellings} == {FIRST_CODE}
    assert (codes["clerk"], codes[""], codes[" "]) == (FIRST_CODE + 1, MISSING, MISSING)
    assert "Clerk" not in codes
    assert JOB.code_count == FIRST_CODE + 2


def test_a_table_is_encoded() -> None:
    inputs = TABLE.inputs({"gain": ["1,000", ""], "extra": ["1", "2"], "job": [" clerk", "x"], "age": ["NA", "3"]})

    found = encoded(TABLE, inputs)

    assert {name: (array.dtype.kind, array.shape) for name, array in inputs.items()} == {
        "age": ("f", (2, 1)),
        "job": ("O", (2, 1)),
        "gain": ("O", (2, 1)),
    }
    assert inputs["job"].tolist() == [[b" clerk"], [b"x"]]
    np.testing.assert_array_equal(found[NUMBERS], np.array([[np.nan, 1000], [3, np.nan]], np.float32))
    assert found[CODES].tolist() == [[FIRST_CODE + 1], [OTHER]]
    texts = inputs | {"job": np.array([["clerk"], ["x"]], object)}
    np.testing.assert_array_equal(encoded(TABLE, texts)[CODES], found[CODES])


def test_plain_numbers_are_one_input() -> None:
    table = TableColumns((AGE, Column("hours", JOINED_INPUT, ColumnKind.NUMBER)), "y")
    inputs = table.inputs({"hours": ["1", "2"], "age": ["3", ""]})
    np.testing.assert_array_equal(inputs[JOINED_INPUT], np.array([[3, 1], [np.nan, 2]], np.float32))


def test_a_missing_column_and_a_cell_that_is_no_number_are_named() -> None:
    with pytest.raises(ColumnError, match="expected a column 'gain', the columns are 'age', 'job'"):
        TABLE.inputs({"age": ["1"], "job": ["x"]})
    with pytest.raises(ColumnError, match="line 8, column 'age': expected a finite number, got 'old'"):
        TABLE.inputs({"age": ["1", "old"], "job": ["x", "y"], "gain": ["1", "2"]}, first_line=7)


def test_a_description_that_was_written_is_read() -> None:
    assert TableColumns.from_bytes(TABLE.to_bytes()) == TABLE
    assert TABLE.to_bytes() == TABLE.to_bytes()
    assert "Müller".encode() in TABLE.to_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"label": 1, "columns": []}',
        b'{"label": "y", "columns": [{"name": "a", "input": "a", "kind": "date"}]}',
        b'{"label": "y", "columns": [{"name": "a", "input": "a", "kind": "category", "categories": [[]]}]}',
        b'{"label": "y", "columns": [{"name": "a", "input": "a", "kind": "category", "categories": [[1]]}]}',
        b'{"label": "y", "columns": [{"input": "a", "kind": "number"}]}',
        b'{"label": "y", "columns": ["a"]}',
        b"[" * 100_000,
    ],
)
def test_another_description_is_refused(content: bytes) -> None:
    with pytest.raises(ColumnError, match=r"columns\.json: expected the columns of a table"):
        TableColumns.from_bytes(content)


def test_labels_have_one_name_however_they_are_written() -> None:
    names = {" >50K ": ">50K", "1.0": "1", "+1": "1", "007": "007", "0": "0", "-2": "-2", "1.5": "1.5", "Nan": "Nan"}
    assert {label: class_name(label) for label in names} == names


def test_a_file_is_read_whatever_its_lines_end_with(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for end in ("\r\n", "\n", "\r"):
        lines = ['\ufeff a ,"b, ü",d', '1,"x\ny","say ""hi"""', "", "2, z ,"]
        path.write_bytes((end.join(lines) + end).encode())
        table = read_csv(path)
        assert table.header == ("a", "b, ü", "d")
        assert table.rows == (("1", "x\ny", 'say "hi"'), ("2", " z ", ""))
        assert table.cells("b, ü") == ["x\ny", " z "]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "expected a header and rows, got an empty file"),
        (b"a,b\n1\n", "line 2: expected 2 cells as in the header, got 1; add"),
        (b"a,b\n1,2,3\n", "line 2: expected 2 cells as in the header, got 3; put quotes"),
        (b"sep=,\na,b\n1,2\n", "line 1: expected the names of the columns, got 'sep='; remove the line"),
        (b"sep=;\na;b\n1;2\n", "line 1: expected commas between the columns, got 'sep=;'"),
        (b"a,b,,\n1,2,,\n", "got '' twice; name the columns, or remove the empty ones"),
        ("a,b\n1,2\n".encode("utf-16"), 'expected a table in UTF-8, got UTF-16; save it as "CSV UTF-8"'),
        (b"a,b\ngr\xfcn,2\n", "expected a table in UTF-8, got b'\\\\xfc', which is none; save it as"),
        (b"a,a \n1,2\n", "line 1: expected a name of its own for each column, got 'a' twice"),
        (b"a;b\n1;2\n", "line 1: expected commas between the columns, got 'a;b'"),
        (b"a,b\n\xff,2\n", "expected a table in UTF-8"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ColumnError, match=text):
        read_csv(tmp_path / "t.csv")
    with pytest.raises(ColumnError, match="expected a table in UTF-8"):
        read_csv(tmp_path / "other.csv")


def test_labels_with_thousands_separators_are_numbers() -> None:
    labels = {
        "1,234": "1234",
        " -1,234,567.5 ": "-1234567.5",
        "1,23": "1,23",
        "0,123": "0,123",
        "a, b": "a, b",
        "u\u0308": "\u00fc",
    }
    assert {label: plain_label(label) for label in labels} == labels
    assert class_name("1,000.0") == "1000"
