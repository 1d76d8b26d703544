"""Tables of numbers, amounts and categories: what the columns are taken for, and what a run makes of them."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitserve_contract.columns import COLUMNS_FILE, TableColumns
from fitserve_training.cli import main
from fitserve_training.config import Values
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.own.table_settings import TableSettings
from fitserve_training.data.own.tables import load_table
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.recipes.table_network import EMBEDDING_SIZE, TableNetwork
from fitserve_training.runs import open_run

ROWS = 60
LABELS = ["up", "down"] * (ROWS // 2)


def written(path: Path, columns: Mapping[str, Sequence[Any]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def loaded(tmp_path: Path, columns: Mapping[str, Sequence[Any]], **settings: Any) -> DataSet:
    path = written(tmp_path / "t.csv", {**columns, "label": settings.pop("labels", LABELS)})
    return load_table(path, TableSettings("label", "auto", 0.2, 0, **settings))


def kinds(data: DataSet) -> dict[str, str]:
    columns = TableColumns.from_bytes(data.files[COLUMNS_FILE]).columns
    return {column.name: column.kind.value for column in columns}


def cycled(*cells: object) -> list[object]:
    return [cells[row % len(cells)] for row in range(ROWS)]


CASES = {
    "plain numbers": (cycled(1, 2.5, "-3e2", " 4 "), "number"),
    "numbers and blanks": (cycled(1, "", "NA", "?", 5, 6), "number"),
    "thousands": (cycled("1,234", "999", "12,345,678.9", ""), "amount"),
    "percentages": (cycled("12%", "3.5 %", "100%"), "amount"),
    "words": (cycled("clerk", "Köchin", ""), "category"),
    "booleans": (cycled("yes", "no"), "category"),
    "truths": (cycled("True", "False"), "category"),
    "codes": (cycled("01234", "99999", "00501"), "category"),
    "dates that recur": (cycled("2024-01-05", "2024-01-06"), "category"),
    "commas and lines": (cycled("a, b", "c\nd"), "category"),
    "words and many numbers": (cycled(*[f"A{n}" for n in range(5)], *range(6)), "category"),
    "numbers and infinity signs": (cycled("∞", "a lot", "few", "7"), "category"),
}


@pytest.mark.parametrize("name", CASES)
def test_columns_are_told_by_their_cells(name: str, tmp_path: Path) -> None:
    cells, kind = CASES[name]
    assert kinds(loaded(tmp_path, {"a": cells, "b": cycled("x", "y")}))["a"] == kind


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("empty", cycled("", "NA"), "for every cell is empty"),
        ("note", [f"note {row}" for row in range(ROWS)], "for most rows have a text of their own there"),
        ("day", [f"2024-01-{row:02d}" for row in range(ROWS)], "columns of its year, month or weekday would do"),
        ("power", [f"{row / 7:.2f} bhp" for row in range(ROWS)], "numbers without their unit would do"),
        ("same", cycled("x"), "for it is the same in every row to train on"),
        ("customer_id", [f"C{row}" for row in range(ROWS)], "for it only numbers the rows"),
        ("", list(range(ROWS)), "for it only numbers the rows"),
    ],
)
def test_columns_without_use_are_left_out_with_a_line(
    name: str, cells: list[object], reason: str, tmp_path: Path
) -> None:
    data = loaded(tmp_path, {name: cells, "b": cycled("x", "y")})
    assert kinds(data) == {"b": "category"}
    assert f"column {name!r} is left out" in data.note
    assert reason in data.note


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([*range(ROWS - 1), "two"], "line 61, column 'a': expected a finite number, got 'two'; correct it, or --set"),
        (cycled(1, 2, 3, "3+"), "line 5, column 'a': expected a finite number, got '3[+]'"),
        (
            cycled("1.234,56", "7,1", "2.000,00"),
            "line 2, column 'a': expected numbers such as 1,234.56, got '1.234,56'",
        ),
        (cycled("0,123", "0,5"), "line 2, column 'a': expected numbers such as 1,234.56"),
        (cycled("$1,234", "$5", "$7"), "line 2, column 'a': expected numbers without a currency, got '[$]1,234'"),
        (cycled("USD 5", "7 EUR", 8, 9), "line 2, column 'a': expected numbers without a currency, got 'USD 5'"),
        (cycled(1, "$5", "2.5"), "line 3, column 'a': expected numbers without a currency, got '[$]5'"),
        (
            cycled("1 234", 7, "12\u00a0345"),
            "line 2, column 'a': expected numbers such as 1,234.56, got '1 234'; remove",
        ),
        (cycled("1'234.50", "9'999"), "line 2, column 'a': expected numbers such as 1,234.56, got"),
        ([f"{'(' * (row % 2)}{row}{')' * (row % 2)}" for row in range(ROWS)], "line 3, .*negative numbers such as -5"),
        (
            [f"{'' if row % 2 else '−'}{row}.5" for row in range(ROWS)],
            "line 2, .*negative numbers such as -5, got '−0.5'",
        ),
        (cycled("1,234", "12,5", "3"), "line 3, column 'a': expected numbers such as 1,234.56, got '12,5'"),
        (cycled("1,000", "1e39"), "line 3, column 'a': expected an amount such as 1,234.5, got '1e39'"),
        (cycled("1,000", "5\u00a0"), "line 3, column 'a': expected an amount such as"),
        (cycled("1,000", "\u00a0"), "line 3, column 'a': expected an amount such as"),
        (cycled(1, "1e39"), "line 3, column 'a': expected a finite number, got '1e39'"),
    ],
)
def test_what_may_be_a_mistake_is_refused_with_its_line(cells: list[object], text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        loaded(tmp_path, {"a": cells, "b": cycled("x", "y")})
    assert kinds(loaded(tmp_path, {"a": cells, "b": cycled("x", "y")}, drop="a")) == {"b": "category"}
    taken = loaded(tmp_path, {"a": cells, "b": cycled("x", "y")}, categories="b, a")
    assert kinds(taken).get("a", "category") == "category"


def test_settings_name_columns_of_the_table(tmp_path: Path) -> None:
    columns = {"a, b": cycled(1, 2), "c": cycled(3, 4)}
    assert kinds(loaded(tmp_path, columns, categories='"a, b"')) == {"a, b": "category", "c": "number"}
    with pytest.raises(UsageError, match=r"setting 'data\.drop': expected columns of .*t\.csv, .*got 'd'"):
        loaded(tmp_path, columns, drop="d")


def test_numbers_that_float32_cannot_tell_apart_are_named(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"stamp": [1_700_000_000 + row for row in range(ROWS)], "b": cycled("x", "y")})
    assert "column 'stamp': float32 does not tell" in data.note


def test_vocabularies_come_from_training_rows_alone_and_rare_values_count_as_others(tmp_path: Path) -> None:
    cells = [*cycled("often", "Often "), ""][:ROWS]
    cells[3] = "once"
    data = loaded(tmp_path, {"a": cells, "n": cycled(1, 2)})
    (column,) = TableColumns.from_bytes(data.files[COLUMNS_FILE]).categories
    assert [spellings[0] for spellings in column.categories] == ["Often", "often"]
    every = sorted({int(code) for split in (data.train, data.held_out) for code in split.inputs[1].flatten()})
    assert every == [0, 2, 3]


def test_held_out_rows_are_served_as_the_file_has_them(tmp_path: Path) -> None:
    cells = cycled("1,000", " 2 ", "")
    data = loaded(tmp_path, {"gain": cells, "job": cycled("ä", "b"), "n": cycled(1, "")})
    assert data.served is not None
    rows = data.served.held_out()
    assert set(rows["gain"].reshape(-1)) <= {b"1,000", b" 2 ", b""}
    assert np.isnan(rows["n"]).any()
    assert len(rows["job"]) == len(data.held_out)
    train = data.served.train(np.array([2, 0]))
    assert [train["job"][place, 0].decode() in "äb" for place in (0, 1)] == [True, True]
    assert torch.equal(data.train.inputs[0][[2, 0], 1].isnan(), torch.from_numpy(np.isnan(train["n"][:, 0])))


def test_inputs_are_called_as_the_columns_but_for_the_output_and_nothing(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"logits": cycled("a", "b"), "logits_column": cycled("a", "b"), "": cycled("c", "d")})
    columns = TableColumns.from_bytes(data.files[COLUMNS_FILE]).columns
    assert [column.input for column in columns] == ["logits_column_", "logits_column", "column_3"]
    assert "column 'logits' is the input 'logits_column_'" in data.note


def test_a_file_with_a_mark_and_windows_lines_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", {"größe": cycled(1, 2), "label": LABELS}, encoding="utf-8-sig")
    data = load_table(path, TableSettings("label", "auto", 0.2, 0))
    assert kinds(data) == {"größe": "number"}
    assert data.served is None


def passengers(path: Path, count: int = 120) -> Path:
    """Writes a table whose label follows the class and the fare, with blanks in every column."""
    random.seed(1)
    rows = []
    for number in range(count):
        fare, place = random.randint(5, 3000), random.choice(["first", "third"])
        is_saved = (place == "first") != (fare > 2500)
        rows.append((number + 1, is_saved, place, random.choice([random.randint(1, 80), ""]), f"{fare:,}"))
    names = ("PassengerId", "survived", "class", "age", "fare")
    return written(path, dict(zip(names, zip(*rows, strict=True), strict=True)))


def test_a_mixed_table_is_learned_and_opened_again(tmp_path: Path) -> None:
    path = passengers(tmp_path / "p.csv")
    settings: Values = {"data.name": str(path), "data.label": "survived", "epochs": 25, "threads": 1}
    said: list[str] = []

    run = open_run(train(Request("mlp", tmp_path / "run", changes=settings), said.append))

    assert run.columns is not None
    assert [spec.name for spec in run.inputs] == ["numbers", "codes"]
    held_out = run.held_out()
    assert sorted(held_out.inputs) == ["age", "class", "fare"]
    assert run.training_record["metrics"]["test_accuracy"] > 0.85
    assert any("numbers with thousands separators or percent signs" in line and "fare" in line for line in said)
    assert any("column 'PassengerId' is left out" in line for line in said)


def test_missing_values_of_plain_numbers_become_the_median_inside_the_model(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", {"a": cycled(1, 2, "", 9, 2), "b": cycled(1, 2), "label": LABELS})
    settings: Values = {"data.name": str(path), "data.label": "label", "epochs": 1, "threads": 1}

    run = open_run(train(Request("mlp", tmp_path / "run", changes=settings), lambda _line: None))

    assert [(spec.name, spec.shape) for spec in run.inputs] == [("x", ("batch", 2))]
    assert isinstance(run.module, TableNetwork)
    assert run.module.median.tolist()[0] == 2
    assert torch.isfinite(run.module(torch.tensor([[math.nan, 1.0], [2.0, math.nan]]))).all()
    assert run.module(torch.tensor([[math.inf, 1.0], [2.0, 1.0]])).isnan().tolist() == [[True, True], [False, False]]


def test_codes_that_no_training_row_has_stand_for_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", {"a": cycled("x", "y"), "b": cycled("u", "v"), "label": LABELS})
    settings: Values = {"data.name": str(path), "data.label": "label", "epochs": 2, "threads": 1}
    run = open_run(train(Request("mlp", tmp_path / "run", changes=settings), lambda _line: None))
    assert isinstance(run.module, TableNetwork)
    assert run.module.embedding is not None
    rows = run.module.embedding.weight
    assert rows.shape == (8, EMBEDDING_SIZE)
    assert rows[[0, 1, 4, 5]].eq(0).all()
    assert rows[[2, 3, 6, 7]].ne(0).all()


def test_labels_with_thousands_separators_are_values(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"a": cycled("x", "y")}, labels=[f"{1000 + 37 * row:,}" for row in range(ROWS)])
    assert data.class_names == ()
    assert float(data.train.targets.min()) >= 1000


def test_a_name_with_a_line_end_stays_on_its_line(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"a\nb": cycled("x", "y")})
    assert "from a\\nb (" in data.source
    assert "\n" not in data.source + data.note


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_what_is_said_of_a_table_stays_short_and_in_its_line(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITSERVE_DATA_STORE", store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    columns = {f"c\n{place}\x1b[2J": cycled(*range(place, place + 9)) for place in range(200)}
    data = loaded(tmp_path, {**columns, "empty\n": cycled("")})
    assert "and 188 more" in data.source
    assert len(data.source) < 1000
    assert data.source.isprintable()
    assert data.note.isprintable()


def test_a_link_to_itself_is_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").symlink_to("t.csv")
    arguments = ["--data", str(tmp_path / "t.csv"), "--set", "data.label=y", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "t.csv: expected a folder with a folder of pictures per class, a .csv table" in capsys.readouterr().err
