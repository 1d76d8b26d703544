"""Examples from CSV files: columns by name, labels by class, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fitserve_client.client import Client
from fitserve_client.errors import FileError
from fitserve_client.example_files import labels_of
from fitserve_client.models import ModelVersion, VersionDetails
from fitserve_client.table_examples import examples_of, table_examples
from fitserve_contract.columns import Column, ColumnError, ColumnKind, TableColumns
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import Scores, Task, TaskKind

COLUMNS = TableColumns(
    (Column("age", "age", ColumnKind.NUMBER), Column("logits", "logits_column", ColumnKind.CATEGORY, (("a",),))),
    "income",
)
CLASSES = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, ("1", ">50K"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES, ())


def details(task: Task | None = CLASSES, *inputs: TensorSpec) -> VersionDetails:
    version = ModelVersion(1, "READY", "", True, "CPUExecutionProvider", (), "", 8, 1.0)
    return VersionDetails("m", version, inputs, (), task)


def file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8-sig"))
    return tmp_path / "t.csv"


def test_columns_are_found_by_name_and_labels_by_class(tmp_path: Path) -> None:
    path = file(tmp_path, "extra,logits,income,age\r\n0,ä b,1.0 ,NA\r\n0,, >50K,3\r\n")

    found = table_examples(path, details(), COLUMNS)

    assert list(found.inputs) == ["age", "logits_column"]
    np.testing.assert_array_equal(found.inputs["age"], np.array([[np.nan], [3]], np.float32))
    assert found.inputs["logits_column"].tolist() == [["ä b".encode()], [b""]]
    assert labels_of(found, path).tolist() == [0, 1]
    assert found.notes == (f"file '{path}': the model takes no column 'extra'",)


def test_values_are_labels_of_a_regression(tmp_path: Path) -> None:
    found = table_examples(file(tmp_path, "age,logits,income\n1,a,2.5\n2,b,-3\n"), details(VALUES), COLUMNS)
    assert labels_of(found, Path("t.csv")).tolist() == [[2.5], [-3.0]]


@pytest.mark.parametrize("text", ["age,logits\n1,a\n", "age,logits,income\n1,a,\n2,b, \n"])
def test_a_table_without_labels_can_be_predicted_but_not_scored(text: str, tmp_path: Path) -> None:
    found = table_examples(file(tmp_path, text), details(), COLUMNS)
    with pytest.raises(FileError, match="expected labels in a column 'income', found none"):
        labels_of(found, Path("t.csv"))


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("logits,income\na,1\n", CLASSES, "expected a column 'age', the columns are 'logits', 'income'"),
        ("age,logits\n", CLASSES, "expected a row below the header, got none"),
        ("age,logits\n1,a\nold,b\n", CLASSES, "line 3, column 'age': expected a finite number, got 'old'"),
        (
            "age,logits,income\n1,a,1\n2,b,2\n",
            CLASSES,
            "line 3, column 'income': expected a class of '1', '>50K', got '2'",
        ),
        ("age,logits,income\n1,a,1\n2,b,\n", CLASSES, "line 3, column 'income': expected a class"),
        ("age,logits,income\n1,a,1\n2,b,many\n", VALUES, "line 3, column 'income': expected a number, got 'many'"),
        ("age,logits\n1\n", CLASSES, "line 2: expected 2 cells as in the header, got 1"),
    ],
)
def test_what_does_not_fit_is_named(text: str, task: Task, message: str, tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match=message):
        table_examples(file(tmp_path, text), details(task), COLUMNS)


def test_a_version_without_columns_takes_one_for_each_input(tmp_path: Path) -> None:
    path = file(tmp_path, "b,a,label\nx,1,>50K\n")
    specs = (TensorSpec("a", "FP32", ("batch", 1)), TensorSpec("b", "BYTES", ("batch", 1)))
    with Client("localhost:1") as client:
        found = examples_of(client, path, details(CLASSES, *specs))
        assert {name: array.tolist() for name, array in found.inputs.items()} == {"a": [[1.0]], "b": [[b"x"]]}
        assert labels_of(found, path).tolist() == [1]
        with pytest.raises(FileError, match=r"t\.csv': expected a model that takes a table: .*'image' FP32"):
            examples_of(client, path, details(CLASSES, TensorSpec("image", "FP32", ("batch", 1, 8, 8))))
        with pytest.raises(FileError, match=r"expected a \.png file for --invert, got '\.csv'"):
            examples_of(client, path, details(CLASSES, *specs), is_inverted=True)
        with pytest.raises(FileError, match=r"file '.*other\.csv': expected a table in UTF-8, got"):
            examples_of(client, tmp_path / "other.csv", details(CLASSES, *specs))
