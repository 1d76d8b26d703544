"""Large tables: read by blocks into a mapped file, they are the data sets that they are in memory."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_training import rundir
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.own import plain_columns, plain_tables
from fitserve_training.data.own.large_tables import load_large_table
from fitserve_training.data.own.table_settings import TableSettings
from fitserve_training.data.own.tables import load_table
from fitserve_training.data.store import cache_folder
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.runs import open_run

ROWS = 60
SETTINGS = TableSettings("label", "auto", 0.2, 0)
IN_MEMORY = "; read into memory, for not all columns are plain numbers"


@contextmanager
def stored_in(folder: Path, residence: str) -> Iterator[None]:
    """Sets the environment; hypothesis's examples cannot share a fixture."""
    before = {name: os.environ.get(name) for name in ("XDG_CACHE_HOME", "FITSERVE_DATA_STORE")}
    os.environ.update(XDG_CACHE_HOME=str(folder / "cache"), FITSERVE_DATA_STORE=residence)
    try:
        yield
    finally:
        cache_folder._usable.cache_clear()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_tables, "_BLOCK_BYTES", 300)
    monkeypatch.setattr(plain_columns, "_TALLIED_ROWS", 7)


def written(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def outcome(path: Path, residence: str, table: TableSettings = SETTINGS) -> Any:
    """Gives what a table becomes, or what is said of it."""
    with stored_in(path.parent, residence):
        try:
            data = load_table(path, table)
        except UsageError as error:
            return str(error)
        return parts(data)


def parts(data: DataSet) -> Any:
    splits = [(split.whole(), split.input_dtypes) for split in (data.train, data.held_out)]
    tensors = [
        [(x.dtype, x.numpy().tobytes(), tuple(x.shape)) for x in (*whole.inputs, whole.targets)] for whole, _ in splits
    ]
    return data.source, data.class_names, data.files, data.note.removesuffix(IN_MEMORY), tensors


PLAIN = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: f"{x:.4g}")
CELLS = {
    "plain": PLAIN,
    "whole": st.integers(-9, 9).map(str),
    "blanks": st.one_of(PLAIN, st.sampled_from(["", "NA", "-", " null ", "nan", "?"])),
    "forms": st.sampled_from(["1.", ".5", "+2", " 3", "4 ", "1e3", "-1E-3", "0", "-0", "0.10", "00.5", "\t6"]),
    "codes": st.sampled_from(["007", "012", "3"]),
    "amounts": st.sampled_from(["1,234", "12 %", "5"]),
    "words": st.sampled_from(["a", "b", "c,d", 'e"f', "g\nh", "ä"]),
    "strange": st.sampled_from(["1_0", "inf", "0x10", "1e99", "1e40", "1" * 31, "1e00005", "٣"]),
}
LABELS = {
    "words": st.sampled_from([" up", "down"]),
    "digits": st.sampled_from(["0", "1.0", "1", "2"]),
    "values": PLAIN,
    "blanks": st.sampled_from(["", "1", "2"]),
}


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[str]]:
    count = draw(st.integers(4, 50))
    chosen = draw(st.lists(st.sampled_from([*["plain"] * 4, *CELLS]), min_size=1, max_size=4))
    columns = {}
    for place, kind in enumerate(chosen):
        columns[f"c{place}"] = draw(st.lists(CELLS[kind], min_size=count, max_size=count))
        if draw(st.integers(0, 5)) == 0:  # now and then a cell of another kind, anywhere
            columns[f"c{place}"][draw(st.integers(0, count - 1))] = draw(CELLS[draw(st.sampled_from(list(CELLS)))])
    if draw(st.booleans()):
        columns["row"] = [str(row) for row in range(count)]
        columns["user_id"] = [f"{row % draw(st.sampled_from([count, 3]))}" for row in range(count)]
    return columns | {
        "label": draw(st.lists(LABELS[draw(st.sampled_from(list(LABELS)))], min_size=count, max_size=count))
    }


@given(tables(), st.sampled_from([25, plain_columns._MOST_LABELS]), st.sampled_from(["auto", "regression"]))
@settings(deadline=None, max_examples=50)
def test_a_table_is_the_same_by_blocks_and_in_memory(columns: dict[str, list[str]], most: int, task: str) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        path = written(Path(name) / "t.csv", columns)
        expected = outcome(path, "memory", TableSettings("label", task, 0.2, 0))
        patch.setattr(plain_columns, "_MOST_LABELS", most)
        found = outcome(path, "disk", TableSettings("label", task, 0.2, 0))
        if isinstance(expected, str) and most == 25 and "label: expected a finite number" in expected:
            assert found.partition("number")[0] == expected.partition("number")[0]  # the line is the same
        else:
            assert found == expected
        assert outcome(path, "disk", TableSettings("label", task, 0.2, 0)) == found, "found again"


def lines(path: Path, *texts: str) -> Path:
    path.write_bytes("".join(texts).encode())
    return path


def many(row: Callable[[int], str], count: int = ROWS) -> list[str]:
    return [row(place) for place in range(count)]


@pytest.mark.parametrize(
    "content",
    [
        ["\ufeffa,label\r\n", *many(lambda i: f"{i},{i % 2}\r\n")],
        [" a , label \n", *many(lambda i: f'"{i}","{i % 2}"\n\n')],
        ["a,label\n", *many(lambda i: f"{i},{i % 2}\n"), "7,1"],
        ["a,label\n", *many(lambda i: f"{i},{i % 2}\n"), "7\n"],
        ["a,label\n", *many(lambda i: f"{i},{i % 2}{',1' * (i == 50)}\n")],
        ["a;label\n", *many(lambda i: f"{i};{i % 2}\n")],
        ["a,a,label\n", *many(lambda i: f"{i},1,{i % 2}\n")],
        ["a,label\n"],
        [],
        ["a,label\n", *many(lambda i: f"{i % 3:03},{i % 2}\n")],
        ["a,b,label\n", *many(lambda i: f"{i},{'007' if i == 50 else i % 5},{i % 2}\n")],
        ["a,b,label\n", *many(lambda i: f"{i},{'1,5' if i == 50 else i % 5},{i % 2}\n".replace("1,5", '"1,500"'))],
        ["a,b,label\n", *many(lambda i: f"{i},{'few' if i > 20 else i % 5},{i % 2}\n")],
        ["a,id,label\n", *many(lambda i: f"{i},{i if i < 59 else 0},{i % 2}\n")],
        ["a,id,label\n", *many(lambda i: f"{i * 1.5},{i},{i % 2}\n")],
        ["index,a,label\n", *many(lambda i: f"{i / 2},{i % 7},{i % 2}\n")],
        ["b,label\n", *many(lambda i: f"{i},{'x' if i == 44 else i % 2}\n")],
        ["a,b,label\n", *many(lambda i: f"{'oops' if i == 41 else i * 1.5},2,{i % 2}\n")],
        ["a,b,label\n", *many(lambda i: f"{i},,{i % 2}\n")],
        ["a,b,label\n", *many(lambda i: f"{i * 1.5},{'3' if i == 59 else ''},{i % 2}\n")],
    ],
)
def test_files_of_every_kind_are_read_and_refused_as_in_memory(tmp_path: Path, content: list[str]) -> None:
    path = lines(tmp_path / "t.csv", *content)
    assert outcome(path, "disk") == outcome(path, "memory")


def test_what_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,label\n" + "é,1\n".encode("latin-1") * 90)
    assert "expected a table in UTF-8" in outcome(tmp_path / "t.csv", "disk")


def test_a_number_that_float32_does_not_hold_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", "a,label\n", *many(lambda i: f"{'1e39' if i == 50 else i},{i % 2}\n"))
    assert outcome(path, "disk") == outcome(path, "memory")
    assert f"{path} line 52, column 'a': expected a finite number, got '1e39'" in outcome(path, "disk")


def test_plain_numbers_are_mapped_and_read_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", "a,big,label\n", *many(lambda i: f"{i / 7},{1 << 24 | i},{i % 2}\n"))
    with stored_in(tmp_path, "disk"):
        data = load_large_table(path, SETTINGS)
        assert data is not None
        assert "column 'big': float32 rounds its whole numbers, some of which are above 16,777,216" in data.note
        (stored,) = (tmp_path / "cache/fitserve/rows").glob("*.rows")
        made = stored.stat().st_ino
        again = load_large_table(path, SETTINGS)
        assert again is not None
        assert parts(again) == parts(data)
        assert stored.stat().st_ino == made
        path.write_text(path.read_text().replace("label", "label ", 1))
        assert load_large_table(path, SETTINGS) is not None
        assert len(list((tmp_path / "cache/fitserve/rows").glob("*.rows"))) == 2, "by content"


@pytest.mark.parametrize("blank", ["", "3"])
def test_a_run_on_a_mapped_table_is_that_in_memory_to_the_bit(tmp_path: Path, blank: str) -> None:
    random = np.random.default_rng(0).normal(size=ROWS)
    path = lines(
        tmp_path / "t.csv",
        "a,b,label\n",
        *many(lambda i: f"{random[i]:.6f},{blank if i % 7 == 0 else i * 1000},{i * 0.37:.3f}\n"),
    )
    found = []
    for residence in ("disk", "memory"):
        with stored_in(tmp_path, residence):
            changes = {"data.name": str(path), "data.label": "label", "compile": "off", "threads": 1, "epochs": 3}
            run_dir = train(Request("mlp", tmp_path / residence, changes=changes), lambda _line: None)
            summary = json.loads((run_dir / rundir.SUMMARY).read_text())
            examples = open_run(run_dir).held_out().inputs["x"]
            figures = {key: value for key, value in summary.items() if key.startswith(("train_", "test_", "data"))}
            found.append((figures, (run_dir / rundir.WEIGHTS).read_bytes(), examples.tobytes()))
    assert found[0] == found[1]
