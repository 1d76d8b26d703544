"""The user's own data and recipes: what they become, and one sentence with file and place for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitserve_contract.tasks import TaskKind
from fitserve_training import rundir
from fitserve_training.all_recipes import table_lines, table_rows
from fitserve_training.catalogue import PUBLISHED, recipe_for_data
from fitserve_training.cli import main
from fitserve_training.config import Values
from fitserve_training.data.hold_out import hold_out
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.runs import TrainedRun, open_run

RECIPE = """
import torch
from torch import nn


def recipe():
    x = torch.randn(60, 4)
    return nn.Linear(4, 3), (x, x[:, :3].argmax(dim=1)), nn.CrossEntropyLoss(), {"epochs": 2, "batch_size": 20}
"""


def trained(data: Path, run_dir: Path, **changes: Any) -> TrainedRun:
    settings: Values = {"data.name": str(data), "epochs": 2} | {k.replace("__", "."): v for k, v in changes.items()}
    recipe = recipe_for_data(str(data))
    assert recipe is not None
    return open_run(train(Request(recipe, run_dir, changes=settings), lambda _line: None))


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command, which must refuse in one sentence and leave nothing; gives the sentence."""
    run_dir = tmp_path / "runs" / "run"
    assert main([*arguments, "--run-dir", str(run_dir)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not run_dir.parent.exists() or not list(run_dir.parent.iterdir())
    return message


def picture_folder(root: Path, count: int = 5) -> Path:
    for shade, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((9, 12, 3), 40 + 150 * shade + index, np.uint8)
            pixels[..., 0] += 9
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def table(path: Path, rows: list[str], header: str = "a,b,kind") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@given(st.integers(2, 40), st.integers(2, 5), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_hold_out_has_every_example_once_and_every_class_twice(
    per_class: int, class_count: int, share: float, seed: int
) -> None:
    labels = torch.arange(per_class * class_count) % class_count
    ids = torch.arange(len(labels))

    train_split, held_out = hold_out((ids,), labels, share, seed)

    assert sorted(torch.cat((train_split.inputs[0], held_out.inputs[0])).tolist()) == ids.tolist()
    for part in (train_split, held_out):
        assert len(part.targets.unique()) == class_count  # type: ignore[no-untyped-call]
    again = hold_out((ids,), labels, share, seed)[1]
    assert torch.equal(again.inputs[0], held_out.inputs[0])


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    run = trained(picture_folder(tmp_path / "pictures"), tmp_path / "run", data__image_size=8)
    held_out = run.held_out()
    assert (run.recipe, run.task.class_names) == ("convnet", ("dark", "light"))
    assert run.inputs[0].shape == ("batch", 3, 8, 8)
    assert held_out.inputs["image"].shape == (2, 3, 8, 8)
    assert sorted(held_out.labels.tolist()) == [0, 1]


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pictures")
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert trained(root, tmp_path / "run", data__image_size=8).inputs[0].shape == ("batch", 1, 8, 8)


def test_a_table_of_classes_and_one_of_values(tmp_path: Path) -> None:
    words = table(tmp_path / "w.csv", [f"{i},{-i},{'up' if i > 5 else 'down'}" for i in range(12)])
    values = table(tmp_path / "v.csv", [f"{i},{-i},{i * 0.5 + 100}" for i in range(12)])

    by_class = trained(words, tmp_path / "w", data__label="kind")
    by_value = trained(values, tmp_path / "v", data__label="kind", epochs=200)

    assert by_class.task.class_names == ("down", "up")
    assert by_value.task.kind is TaskKind.REGRESSION
    held_out = by_value.held_out()
    found = by_value.module(torch.from_numpy(held_out.inputs["x"])).numpy()
    assert np.abs(found - held_out.labels).max() < 2.0, "scalings are inside the served model"


def test_arrays_say_the_task_by_their_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for name, labels, kind in (
        ("c", (x[:, 0] > 0).astype(np.int32), TaskKind.CLASSIFICATION),
        ("m", x > 0, TaskKind.MULTI_LABEL),
        ("r", x[:, 0], TaskKind.REGRESSION),
    ):
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
        run = trained(tmp_path / f"{name}.npz", tmp_path / name)
        assert run.task.kind is kind
        if kind is TaskKind.MULTI_LABEL:
            assert (run.module(torch.from_numpy(x)) <= 1).all()


def test_what_is_wrong_with_own_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [f"{i},{-i},{i % 2}" for i in range(8)]
    csv, label = tmp_path / "t.csv", ("--set", "data.label=kind")
    cases: list[tuple[list[str], tuple[str, ...], str]] = [
        (good, ("--set", "data.label=color"), "expected a column 'color', the columns are a, b, kind"),
        (good, (), "expected --set data.label=COLUMN"),
        ([*good, "1,two,0"], label, "t.csv line 10, column 'b': expected a finite number, got 'two'"),
        ([*good, "1,2"], label, "t.csv line 10: expected 3 cells as in the header, got 2"),
        (
            [*good, "1,2,nan"],
            (*label, "--set", "data.task=regression"),
            "t.csv line 10: label: expected a finite number",
        ),
        (
            [*good, "1,2,"],
            (*label, "--set", "data.task=classification"),
            "t.csv line 10: label: expected a class, got ''",
        ),
        ([f"{i},{i},0" for i in range(8)], label, "expected at least two classes, got only '0'"),
    ]
    for rows, arguments, expected in cases:
        assert expected in refused(tmp_path, capsys, "--data", str(table(csv, rows)), *arguments)
    csv.write_text("a;b;kind\n" + "\n".join(row.replace(",", ";") for row in good))
    expected = "t.csv line 1: expected commas between the columns, got 'a;b;kind'"
    assert expected in refused(tmp_path, capsys, "--data", str(csv), *label)
    csv.write_text("\n".join(["a,a,kind", *good]))
    expected = "t.csv line 1: expected a name of its own for each column, got 'a' twice"
    assert expected in refused(tmp_path, capsys, "--data", str(csv), *label)


def test_what_is_wrong_with_arrays_and_texts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, jsonl = tmp_path / "e.npz", tmp_path / "t.jsonl"
    x = np.ones((4, 2), np.float32)
    np.savez(npz, x=x)
    assert "expected arrays 'x' and 'labels', got x" in refused(tmp_path, capsys, "--data", str(npz))
    np.savez(npz, x=x, labels=np.array([0, 1, np.nan, 1]))
    assert "array 'labels' row 2: expected finite numbers" in refused(tmp_path, capsys, "--data", str(npz))
    jsonl.write_text('{"text": "a", "labels": ["x"]}\n{"text": 3}\n')
    assert 't.jsonl line 2: expected an object with a "text"' in refused(tmp_path, capsys, "--data", str(jsonl))
    jsonl.write_text('{"text": "a", "labels": ["x"]}\n{"text"\n')
    assert "t.jsonl line 2: expected JSON" in refused(tmp_path, capsys, "--data", str(jsonl))


def test_an_own_recipe_trains_and_opens_again(tmp_path: Path) -> None:
    file = tmp_path / "my_recipe.py"
    file.write_text(RECIPE)

    run = open_run(train(Request(str(file), tmp_path / "run"), lambda _line: None))

    assert (run.recipe, run.output_names, run.task.class_names) == ("my_recipe", ("logits",), ("0", "1", "2"))
    assert run.inputs[0].shape == ("batch", 4)
    assert run.held_out().inputs["x"].shape == (12, 4)
    assert list(run.training_record["data"]["checksums"]) == ["my_recipe.py"]


def test_a_run_goes_on_with_the_recipe_that_it_began_with(tmp_path: Path) -> None:
    file = tmp_path / "my_recipe.py"
    said: list[str] = []
    file.write_text(RECIPE)
    straight = train(Request(str(file), tmp_path / "straight"), lambda _line: None)

    # What a run leaves behind that is killed before its first epoch is over.
    left_out = shutil.ignore_patterns("summary.json", "*.safetensors")
    shutil.copytree(straight, tmp_path / "run.unfinished", ignore=left_out)
    file.write_text(RECIPE.replace("nn.Linear(4, 3)", "nn.Linear(4, 9)"))
    resumed = train(Request(str(file), tmp_path / "run", is_resumed=True), said.append)
    file.unlink()

    assert any("has changed since the run began; the run goes on with its own copy" in line for line in said)
    assert (resumed / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()
    assert open_run(resumed).held_out().inputs["x"].shape == (12, 4)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n", "expected a function named recipe, found none"),
        ("def recipe():\n    return 1 / 0\n", "my_recipe.py line 2: ZeroDivisionError: division by zero"),
        ("def recipe(:\n", "my_recipe.py line 1: SyntaxError"),
        ("def recipe():\n    return 1, 2\n", "expected (model, data, loss, config) from recipe(), got 2 values"),
        (RECIPE.replace('"epochs"', '"epoch"'), "my_recipe.py 'epoch'; did you mean 'epochs'"),
        (RECIPE.replace("x[:, :3].argmax(dim=1)", "x[:, 0] / 0"), "recipe"),
    ],
)
def test_what_is_wrong_with_an_own_recipe_is_named(
    source: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my_recipe.py"
    file.write_text(source)
    assert expected in refused(tmp_path, capsys, str(file))


def test_the_table_of_all_recipes_says_inside_or_not(tmp_path: Path) -> None:
    for name in PUBLISHED:
        (tmp_path / name).mkdir()
        band = {"metric": "train_loss", "low": 0.0, "high": 1.0, "value": 0.5, "is_inside": True}
        published = {"linreg": [band], "line": [{**band, "value": 2.0, "is_inside": False}]}.get(name, [])
        summary = {"data": {"name": "digits"}, "test_loss": 0.25, "published": published}
        (tmp_path / name / rundir.SUMMARY).write_text(json.dumps(summary))
        (tmp_path / name / rundir.CONFIG).write_text("")

    rows = table_rows(tmp_path, {"lenet": "the loss is inf"})

    assert [row[0] for row in rows] == list(PUBLISHED)
    verdicts = {row[0]: row[-1] for row in rows}
    assert (verdicts["linreg"], verdicts["line"], verdicts["softmax"], verdicts["lenet"]) == (
        "inside",
        "OUTSIDE",
        "",
        "stopped",
    )
    assert table_lines(rows)[0].split() == ["recipe", "data", "figure", "published", "reached", "verdict"]
    (tmp_path / "linreg" / rundir.SUMMARY).unlink()
    with pytest.raises(UsageError, match="expected a finished run of linreg, found none"):
        table_rows(tmp_path, {})
