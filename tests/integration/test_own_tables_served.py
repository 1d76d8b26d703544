"""From a table of one's own to answers: trained, exported, served, predicted and evaluated from the same CSV file."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.wire.serving import serving, url

from fitserve_client import Client
from fitserve_client import cli as client
from fitserve_contract.manifest import read_manifest
from fitserve_exporters import cli as exporter
from fitserve_training import cli as trainer


def written(path: Path, header: Sequence[str], rows: Iterator[Sequence[Any]]) -> Path:
    """Writes a table as spreadsheets do: with a byte order mark, and lines that end with both characters."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def census(path: Path, count: int = 300) -> Path:
    header = ("", "age", "job", "gain", "share of rent", "zip", "hours", "income")
    random.seed(2)

    def rows() -> Iterator[Sequence[Any]]:
        for number in range(count):
            age, gain = random.randint(17, 90), random.randint(0, 99_999)
            job = random.choice(["clerk", "Köchin", "Never married, ever", "engineer", " engineer"])
            income = ">50K" if gain > 60_000 or job.strip() == "engineer" else "<=50K"
            yield (
                number,
                random.choice([age, age, age, "", "?"]),
                random.choice([job, job, job, ""]) if income == "<=50K" else job,
                f"{gain:,}",
                random.choice([f"{random.uniform(0, 80):.1f}%", ""]),
                f"0{random.randint(1000, 1009)}",
                random.choice([20, 40]),
                f" {income} ",
            )

    return written(path, header, rows())


def passengers(path: Path, count: int = 240) -> Path:
    header = ("PassengerId", "Survived", "Name", "Sex", "Age", "Ticket", "Fare", "Cabin", "Embarked")
    random.seed(4)

    def rows() -> Iterator[Sequence[Any]]:
        for number in range(count):
            sex = random.choice(["male", "male", "female"])
            is_saved = sex == "female" and random.random() < 0.9
            ticket = random.choice([f"A/5 {random.randint(10_000, 99_999)}", str(random.randint(10_000, 99_999))])
            yield (
                number + 1,
                int(is_saved),
                f'Müller, Mr. Jörg "{number}"',
                sex,
                random.choice(["", round(random.uniform(1, 80), 1)]),
                ticket,
                round(random.uniform(5, 500), 4),
                random.choice(["", "", "", f"C{random.randint(1, 99)}"]),
                random.choice(["S", "C", "Q", ""]),
            )

    return written(path, header, rows())


def served_run(table: Path, label: str, folder: Path, *settings: str) -> Path:
    """Trains and exports; gives the repository."""
    run, repository = str(folder / "run"), folder / "repository"
    arguments = [part for setting in (f"data.label={label}", "threads=1", *settings) for part in ("--set", setting)]
    assert trainer.main(["--data", str(table), "--run-dir", run, *arguments]) == 0
    assert exporter.main([run, "--repository", str(repository), "--name", "table"]) == 0
    return repository


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert client.main([*arguments, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_census_is_served_from_the_file_that_trained_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = census(tmp_path / "census.csv")
    repository = served_run(table, "income", tmp_path, "epochs=30")
    manifest = read_manifest(repository / "table" / "1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert manifest is not None
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.inputs] == [
        ("age", "FP32", ("batch", 1)),
        ("job", "BYTES", ("batch", 1)),
        ("gain", "BYTES", ("batch", 1)),
        ("share of rent", "BYTES", ("batch", 1)),
        ("zip", "BYTES", ("batch", 1)),
        ("hours", "FP32", ("batch", 1)),
    ]
    assert manifest.onnx["joining"] == "joinable"
    assert summary["test_accuracy"] > 0.85
    with serving(repository) as server:
        where = ("--server", url(server))
        held_out = asked(capsys, "evaluate", "table", "--held-out", *where)
        assert held_out["sums"]["correct_count"] == round(summary["test_accuracy"] * held_out["sums"]["example_count"])
        every = asked(capsys, "evaluate", "table", str(table), *where)
        assert every["sums"]["example_count"] == 300
        assert len(asked(capsys, "predict", "table", str(table), *where)["answers"]) == 300
        with Client(url(server)) as open_client:
            check_rows(open_client)


def check_rows(open_client: Client) -> None:
    """Holds single rows against what their cells mean: spaces, separators, blanks, unknown words, unreadable text."""
    row = {"age": 40.0, "job": "clerk", "gain": "1,000", "share of rent": "10%", "zip": "01004", "hours": 40.0}

    def logits(**changes: Any) -> np.ndarray[Any, Any]:
        cells = row | {name.replace("_", " "): value for name, value in changes.items()}
        return open_client.predict("table", {name: [[value]] for name, value in cells.items()}).array

    plain = logits()
    for same in ({"job": " clerk "}, {"gain": " 1000"}, {"gain": "1000.0"}, {"share_of_rent": "0.1"}):
        np.testing.assert_array_equal(logits(**same), plain)
    np.testing.assert_array_equal(logits(job="astronaut"), logits(job="pilot"))
    np.testing.assert_array_equal(logits(share_of_rent=""), logits(share_of_rent="NA"))
    for other in ({"job": ""}, {"gain": "99,000"}, {"age": float("nan")}, {"share_of_rent": ""}):
        assert not np.array_equal(logits(**other), plain)
        assert np.isfinite(logits(**other)).all()
    assert np.isnan(logits(gain="1.234,56")).all(), "text that is no number has no answer"


def test_a_passenger_list_of_another_order_is_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = passengers(tmp_path / "passengers.csv")
    repository = served_run(table, "Survived", tmp_path, "epochs=12", "data.hold_out=0.3")
    notes = capsys.readouterr().out
    for name in ("PassengerId", "Name", "Ticket"):
        assert f"column '{name}' is left out" in notes
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    turned = tmp_path / "turned.csv"
    names = [name for name in reversed(list(rows[0])) if name not in ("Survived", "Name")]
    with turned.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    with serving(repository) as server:
        where = ("--server", url(server))
        answers = asked(capsys, "predict", "table", str(table), *where)
        assert asked(capsys, "predict", "table", str(turned), *where) == answers
        assert asked(capsys, "evaluate", "table", "--held-out", *where)["sums"]["example_count"] == 72
        assert client.main(["evaluate", "table", str(turned), *where]) == 2
        assert "expected labels in a column 'Survived', found none" in capsys.readouterr().err
        turned.write_text(turned.read_text(encoding="utf-8").replace("Fare", "fare", 1), encoding="utf-8")
        assert client.main(["predict", "table", str(turned), *where]) == 2
        assert "expected a column 'Fare', the columns are" in capsys.readouterr().err


def test_a_table_of_plain_numbers_keeps_its_one_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(5)
    pairs = [(random.uniform(-3, 3), random.uniform(-3, 3)) for _ in range(120)]
    table = written(
        tmp_path / "n.csv",
        ("a", "b", "sum"),
        ((x, y if place % 9 else "", x + y) for place, (x, y) in enumerate(pairs)),
    )
    repository = served_run(table, "sum", tmp_path, "epochs=20")
    manifest = read_manifest(repository / "table" / "1")
    assert manifest is not None
    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("x", ("batch", 2))]
    with serving(repository) as server:
        where = ("--server", url(server))
        outputs = asked(capsys, "predict", "table", str(table), *where)["outputs"]
        assert outputs["y"]["shape"] == [120, 1]
        assert asked(capsys, "evaluate", "table", str(table), *where)["sums"]["example_count"] == 120
        held_out = asked(capsys, "evaluate", "table", "--held-out", *where)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert held_out["figures"]["mse"] == pytest.approx(summary["test_loss"], rel=1e-5)
