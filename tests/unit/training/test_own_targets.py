"""What labels become: classes, values or any of several, by a rule that is said and can be overruled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitserve_training.data.own.arrays import load_arrays
from fitserve_training.data.own.table_settings import TableSettings
from fitserve_training.data.own.tables import load_table
from fitserve_training.data.own.targets import Targets, array_targets, targets_of
from fitserve_training.errors import UsageError

PATH = Path("t.csv")
ROWS = 40


def of_texts(labels: Sequence[str], task: str = "auto") -> Targets:
    return targets_of(PATH, labels, 2, task)


def table(path: Path, header: str, columns: Sequence[Sequence[object]]) -> Path:
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@given(st.lists(st.sampled_from(["yes", "no", "may be"]), min_size=8), st.data())
def test_space_around_labels_counts_for_nothing(words: list[str], data: st.DataObject) -> None:
    labels = [*words, "yes", "yes", "no", "no", "may be", "may be"]
    space = st.text(" \t", max_size=2)
    padded = [data.draw(space) + label + data.draw(space) for label in labels]

    found = of_texts(padded)

    assert found.names == ("may be", "no", "yes")
    assert [found.names[i] for i in found.values.tolist()] == labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0.0", "1.0"] * 20, ("0", "1")),
        (["1.0", "1", "0", "0.0"] * 10, ("0", "1")),
        (["-1", "+1"] * 20, ("-1", "1")),
        (["10", "9", "2"] * 10, ("2", "9", "10")),
        (["01", "02"] * 10, ("01", "02")),
        (["True", "False"] * 10, ("False", "True")),
        ([f"{i % 20}.0" for i in range(ROWS)], tuple(map(str, range(20)))),
        ([f"{i % 21}" for i in range(42)], ()),
        ([f"{i % 3}.5" for i in range(ROWS)], ()),
        ([f"{i * 1000}" for i in range(10)], ()),
    ],
)
def test_few_whole_numbers_and_words_are_classes(labels: list[str], names: tuple[str, ...]) -> None:
    found = of_texts(labels)
    assert found.names == names
    assert "for the labels are" in found.note
    assert f"data.task={'regression' if names else 'classification'}" in found.note


def test_the_setting_overrules_the_rule() -> None:
    values = of_texts(["0.0", "1.0"] * 4, "regression")
    assert (values.names, values.note) == ((), "task regression, as data.task says")
    assert values.values.tolist()[:2] == [[0.0], [1.0]]
    classes = of_texts(["0.5", "1.5"] * 4, "classification")
    assert classes.names == ("0.5", "1.5")
    with pytest.raises(UsageError, match=r"'data\.task': expected one of auto, classification, regression, got 'multi"):
        of_texts(["0", "1"], "multi-label")


def test_a_word_among_quantities_is_named_and_one_among_few_numbers_is_a_class() -> None:
    prices = [f"{i * 1000}" for i in range(25)]
    with pytest.raises(UsageError, match=r"t\.csv line 27: label: expected a number as in most lines, got 'n/a'"):
        of_texts([*prices, "n/a"])
    assert len(of_texts([*prices, "n/a"] * 2, "classification").names) == 26
    assert of_texts(["1", "2", "3", "unknown"] * 4).names == ("1", "2", "3", "unknown")
    assert len(of_texts([f"{i}{letter}" for i in range(25) for letter in ("", "a", "b")] * 2).names) == 75


@pytest.mark.parametrize("mark", ["NA", "n/a", "#N/A", "<NA>", "?", "None", "null", " N/A "])
@pytest.mark.parametrize("others", [["yes", "no"], ["0", "1"]])
def test_marks_of_missing_labels_are_no_class_unless_the_task_is_set(mark: str, others: list[str]) -> None:
    labels = [*others * 10, mark, mark]
    with pytest.raises(UsageError, match=r"line 22: label: expected a class, got .*--set data\.task=classification"):
        of_texts(labels)
    assert set(of_texts(labels, "classification").names) == {*others, mark.strip()}
    for blank in ("", " ", "NaN"):
        with pytest.raises(UsageError, match=r"expected a class, got .*remove the lines without a label$"):
            of_texts([*others * 10, blank, blank], "classification")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1_2", "12"], ("12", "1_2")),
        (["12345678901234567", "12345678901234568"], ("12345678901234567", "12345678901234568")),
        (["90071992547409930.0", "90071992547409931.0"], ("90071992547409930.0", "90071992547409931.0")),
        (["\u0661", "1"], ("1", "\u0661")),
        (["1e2", "100"], None),
    ],
)
def test_labels_that_are_spelled_apart_are_not_joined(labels: list[str], names: tuple[str, ...] | None) -> None:
    if names is None:
        with pytest.raises(UsageError, match="only '100'"):
            of_texts(labels * 10)
    else:
        assert of_texts(labels * 10).names == names


def test_classes_that_differ_in_case_alone_are_named() -> None:
    assert "warning: the classes 'Yes' and 'yes' differ in case alone" in of_texts(["yes", "Yes", "no"] * 5).note
    assert "warning" not in of_texts(["yes", "no"] * 5).note


@pytest.mark.parametrize("sign", ["${}", "{}%", "{} €", "{},5", "1 {:03}", "1'{:03}"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_amounts_are_no_classes(sign: str, repeats: int) -> None:
    labels = [sign.format(value) for value in range(30)] * repeats
    with pytest.raises(UsageError, match=r"line 2: label: expected a number such as 1234\.5, got .*point before"):
        of_texts(labels)
    if repeats > 1:
        assert len(of_texts(labels, "classification").names) == 30
    assert len(of_texts([sign.format(value) for value in range(4)] * 5).names) == 4


@pytest.mark.parametrize("large", ["1e30", "-1e39", "9" * 30])
def test_values_whose_squares_float32_does_not_hold_are_named(large: str) -> None:
    with pytest.raises(UsageError, match=r"line 42: label: expected a number of at most 1e\+18, got "):
        of_texts([*[f"{value}.5" for value in range(40)], large])
    values = np.append(np.arange(40.0) / 3, float(large))
    with pytest.raises(UsageError, match=r"array 'labels' row 40: expected numbers of at most 1e\+18, got "):
        array_targets(Path("a.npz"), values, "auto")


HOT = np.eye(3)[np.arange(ROWS) % 3]
SEVERAL = np.stack([np.arange(ROWS) % 2, np.arange(ROWS) % 3 == 0], axis=1)


@pytest.mark.parametrize(
    ("labels", "task", "kind", "names"),
    [
        (np.arange(ROWS) % 3, "auto", "classification", "012"),
        ((np.arange(ROWS) % 2).astype(np.float64), "auto", "classification", "01"),
        (np.arange(ROWS) % 2 == 0, "auto", "classification", "01"),
        ((np.arange(ROWS) % 2)[:, None].astype(np.float32), "auto", "classification", "01"),
        (HOT, "auto", "classification", "012"),
        (HOT.astype(np.int64), "auto", "classification", "012"),
        (HOT.astype(np.bool_), "auto", "classification", "012"),
        (HOT, "multi-label", "multi-label", "012"),
        (HOT, "regression", "regression", ""),
        (SEVERAL, "auto", "multi-label", "01"),
        (SEVERAL.astype(np.float32), "auto", "multi-label", "01"),
        (np.arange(ROWS) * 1000, "auto", "regression", ""),
        (np.arange(ROWS) % 3, "regression", "regression", ""),
        (np.arange(ROWS) / 3, "auto", "regression", ""),
        (np.arange(200) % 100, "auto", "classification", None),
        ((np.arange(200) % 100).astype(np.float32), "auto", "regression", ""),
    ],
)
def test_arrays_of_labels(labels: np.ndarray[Any, Any], task: str, kind: str, names: str | None) -> None:
    found = array_targets(Path("a.npz"), labels, task)
    assert found.note.startswith(f"task {kind}, ")
    assert names is None or "".join(found.names) == names
    dtype = {"classification": torch.int64, "multi-label": torch.bool, "regression": torch.float32}[kind]
    assert found.values.dtype == dtype
    assert found.values.ndim == (1 if kind == "classification" else 2)
    if kind == "classification" and labels.ndim == 1:
        assert np.array_equal(found.values.numpy(), labels), "classes keep their numbers, which Evaluate compares"


@pytest.mark.parametrize(
    ("labels", "task", "expected"),
    [
        (np.array([-1, 1] * 5), "auto", "expected classes numbered from 0 to C - 1, got -1, 1; number them so"),
        (np.array([1000, 2000] * 5), "auto", "expected classes numbered from 0"),
        (np.array([0.5, 1.5] * 5), "classification", "expected classes numbered from 0"),
        (SEVERAL, "classification", "expected whole numbers"),
        (np.arange(6).reshape(3, 2), "multi-label", r"expected rows of 0 and 1 \(N, C\)"),
        (np.arange(4) % 2, "sorting", "expected one of auto, classification, regression, multi-label"),
        (np.array([0, 1, 1]), "classification", "class '0': expected at least two examples"),
    ],
)
def test_labels_that_a_task_cannot_have(labels: np.ndarray[Any, Any], task: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        array_targets(Path("a.npz"), labels, task)


def test_arrays_follow_the_task_that_is_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((ROWS, 2)), labels=np.arange(ROWS) % 4)
    assert load_arrays(tmp_path / "a.npz", "x", "auto", 0.2, 0).class_names == ("0", "1", "2", "3")
    data = load_arrays(tmp_path / "a.npz", "x", "regression", 0.2, 0)
    assert (data.class_names, tuple(data.train.targets.shape)) == ((), (32, 1))


@pytest.mark.parametrize(("name", "served"), [("x", "image"), ("image", "x"), ("x", "x")])
def test_arrays_of_inputs_have_either_name(tmp_path: Path, name: str, served: str) -> None:
    inputs, labels = np.ones((8, 2)), np.arange(8) % 2
    if name == "x":
        np.savez(tmp_path / "a.npz", x=inputs, labels=labels)
    else:
        np.savez(tmp_path / "a.npz", image=inputs, labels=labels)
    note = load_arrays(tmp_path / "a.npz", served, "auto", 0.2, 0).note
    assert (f"array '{name}' becomes the model's input '{served}'" in note) is (name != served)
    np.savez(tmp_path / "a.npz", x=inputs, image=inputs, labels=labels)
    with pytest.raises(UsageError, match=f"expected arrays '{served}' and 'labels', got x, image, labels"):
        load_arrays(tmp_path / "a.npz", served, "auto", 0.2, 0)


@pytest.mark.parametrize(
    ("name", "cells", "is_dropped"),
    [
        ("", range(ROWS), True),
        ("Unnamed: 0", range(7, 7 + ROWS), True),
        ("index", reversed(range(ROWS)), True),
        ("PassengerId", range(1, 1 + ROWS), True),
        ("customer_id", [f"c{i:03}" for i in range(ROWS)], True),
        ("ID", range(100, 100 + ROWS), True),
        ("paid", range(ROWS), False),
        ("day", range(ROWS), False),
        ("store_id", [i % 5 for i in range(ROWS)], False),
        ("index", [i + 0.5 for i in range(ROWS)], False),
    ],
)
def test_index_columns_are_left_out_with_a_line(
    tmp_path: Path, name: str, cells: Sequence[object], is_dropped: bool
) -> None:
    labels = ["up", "down"] * (ROWS // 2)
    data = load_table(
        table(tmp_path / "t.csv", f"{name},a,l", [list(cells), range(ROWS), labels]), TableSettings("l", "auto", 0.2, 0)
    )
    assert data.train.inputs[0].shape[1] == (1 if is_dropped else 2)
    assert (f"column {name!r} is left out" in data.note) is is_dropped


def test_a_table_of_row_numbers_alone_is_refused_and_the_label_is_never_dropped(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "id,label", [range(ROWS), ["up", "down"] * (ROWS // 2)])
    with pytest.raises(UsageError, match="expected a column to learn from, got only row numbers beside 'label'"):
        load_table(path, TableSettings("label", "auto", 0.2, 0))
    path = table(tmp_path / "t.csv", "a,index", [range(ROWS), range(ROWS)])
    assert load_table(path, TableSettings(" index", "auto", 0.2, 0)).train.targets.is_floating_point()


@pytest.mark.parametrize("place", ["x", "labels"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_float32_does_not_hold_are_named(place: str, dtype: type, value: float, tmp_path: Path) -> None:
    with np.errstate(over="ignore"):
        bad = dtype(value)
    arrays = {"x": np.ones((ROWS, 2), dtype), "labels": (np.arange(ROWS) / 7).astype(dtype)}
    arrays[place][3] = bad
    np.savez(tmp_path / "a.npz", **arrays)
    expected = rf"array '{place}' row 3: expected finite numbers that float32 holds, got (NaN or infinity|1e\+300)"
    with pytest.raises(UsageError, match=expected):
        load_arrays(tmp_path / "a.npz", "x", "auto", 0.2, 0)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 0), (ROWS, 1, 0, 4)])
def test_arrays_without_an_axis_of_features_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(shape, np.float32), labels=np.arange(ROWS) % 2)
    with pytest.raises(
        UsageError, match=r"array 'x': expected features \(N, D\) or pictures .*one feature is \(N, 1\)"
    ):
        load_arrays(tmp_path / "a.npz", "x", "auto", 0.2, 0)


def test_one_example_is_too_few(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 2), np.float32), labels=np.zeros(1, int))
    with pytest.raises(UsageError, match="expected at least two examples, got 1"):
        load_arrays(tmp_path / "a.npz", "x", "auto", 0.2, 0)


def test_pictures_of_bytes_are_told_to_differ_from_what_the_client_sends(tmp_path: Path) -> None:
    pixels = np.arange(ROWS * 12).reshape(ROWS, 1, 3, 4) % 256
    for array, is_told in ((pixels.astype(np.uint8), True), ((pixels / 255).astype(np.float32), False)):
        np.savez(tmp_path / "a.npz", image=array, labels=np.arange(ROWS) % 2)
        note = load_arrays(tmp_path / "a.npz", "image", "auto", 0.2, 0).note
        assert ("array values reach 255" in note) == is_told
        assert "warning" not in load_arrays(tmp_path / "a.npz", "x", "auto", 0.2, 0).note
