"""A run goes on with its own settings; a finished one may be trained longer, to the bits of one that always was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fitserve_training import rundir
from fitserve_training.checkpoint import read_progress
from fitserve_training.config import Values
from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.resuming import data_record
from fitserve_training.runs import open_run
from fitserve_training.seeds import train_seeds

SMALL: Values = {"data.example_count": 60, "epochs": 3, "optimizer": "adam", "lr_warmup_steps": 20}
UNTIMED = ("epoch", "train_loss", "test_loss", "val_loss")


def quiet(_line: str) -> None:
    pass


def begun(run_dir: Path, **changes: str | int | float | bool) -> Path:
    return train(Request("linreg", run_dir, changes={**SMALL, **changes}), quiet)


def resumed(run_dir: Path, recipe: str = "linreg", **changes: Any) -> Path:
    return train(Request(recipe, run_dir, changes=changes, is_resumed=True), quiet)


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, state, settings and figures are those of the other run; times and folders differ."""
    for name in (rundir.WEIGHTS, rundir.CURVE, "loss.svg"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    paths = [run / rundir.CHECKPOINT for run in (found, expected)]
    states, progress = [load_file(path) for path in paths], [read_progress(path) for path in paths]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert progress[0] == progress[1]
    rows = [
        [{key: row.get(key) for key in UNTIMED} for row in rundir.read_lines(run / rundir.METRICS)]
        for run in (found, expected)
    ]
    assert rows[0] == rows[1]
    summaries = [json.loads((run / rundir.SUMMARY).read_text()) for run in (found, expected)]
    for key in ("epochs_done", "best", "data", *UNTIMED):
        assert summaries[0].get(key) == summaries[1].get(key), key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_weights": "best", "lr": 0.3},
        # Nothing moves at this rate, so that the best weights are those of the part that was there.
        {"keep_weights": "best", "lr": 1e-30},
        {"patience": 2, "lr": 0.01},
        {"batch_size": 0, "momentum": 0.9, "optimizer": "sgd"},
    ],
)
def test_a_finished_run_trained_longer_is_one_that_always_was(tmp_path: Path, changes: Values) -> None:
    straight = begun(tmp_path / "straight", **{**changes, "epochs": 7})
    longer = begun(tmp_path / "longer", **changes)

    said: list[str] = []
    assert train(Request("linreg", longer, changes={"epochs": 7}, is_resumed=True), said.append) == longer

    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == [f"epoch {n}/7" for n in range(4, 8)]
    assert_same_run(longer, straight)
    assert (longer / rundir.CONFIG).read_text() == (straight / rundir.CONFIG).read_text()
    assert [path.name for path in tmp_path.iterdir() if "." in path.name] == []


def test_a_recipe_of_the_users_goes_on_with_its_copy(tmp_path: Path) -> None:
    source = """
import torch
from torch import nn

def recipe():
    x = torch.randn(60, 3)
    return nn.Linear(3, 1), (x, x.sum(1)), nn.MSELoss(), {"lr": 0.1, "epochs": 2, "compile": "off", "patience": 1}
"""
    (tmp_path / "mine.py").write_text(source)
    run_dir = train(Request(str(tmp_path / "mine.py"), tmp_path / "run", changes={}), quiet)
    straight = train(Request(str(tmp_path / "mine.py"), tmp_path / "straight", changes={"epochs": 4}), quiet)
    (tmp_path / "mine.py").write_text(source.replace("0.1", "0.7"))

    assert_same_run(resumed(run_dir, recipe=str(tmp_path / "mine.py"), epochs=4), straight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr": 0.5},
            r"'lr': the run has 0\.03, and goes on with no other value, got 0\.5; leave it out, or start a new",
        ),
        ({"seed": 1}, "'seed': the run has 0"),
        ({"epochs": 2}, "'epochs': the run has 3, and goes on with as many or more, got 2"),
        ({"log_every": 2}, "finished after its 3 epochs; expected more of them"),
        ({"epochs": 9, "batch_size": 7}, "'batch_size': the run has 10"),
        ({"epochz": 9}, "unknown setting in --set 'epochz'; did you mean 'epochs'"),
        ({"epochs": 9, "validation_share": 0.5}, r"'validation_share': the run has 0\.1"),
    ],
)
def test_what_a_finished_run_cannot_go_on_with_is_refused(tmp_path: Path, changes: Values, message: str) -> None:
    run_dir = begun(tmp_path / "run")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    with pytest.raises(UsageError, match=message):
        train(Request("linreg", run_dir, changes=changes, is_resumed=True), quiet)

    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_settings_as_they_are_in_the_run_change_nothing(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run")
    said: list[str] = []
    request = Request("linreg", run_dir, run_dir / rundir.CONFIG, {"epochs": "3", "data.name": "auto"}, is_resumed=True)

    train(request, said.append)

    assert said == [f"run {run_dir} is finished already; nothing to resume"]


def test_a_file_of_settings_may_ask_for_more_epochs(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run")
    (tmp_path / "more.toml").write_text("epochs = 5\n")
    train(Request("linreg", run_dir, tmp_path / "more.toml", is_resumed=True), quiet)
    assert json.loads((run_dir / rundir.SUMMARY).read_text())["epochs_done"] == 5


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_over_all_epochs_is_not_stretched(tmp_path: Path, schedule: str) -> None:
    run_dir = begun(tmp_path / "run", lr_schedule=schedule, lr_warmup_steps=2)
    with pytest.raises(UsageError, match=f"'epochs': the run has 3, over which lr_schedule={schedule} brings"):
        resumed(run_dir, epochs=9)


def test_a_run_that_stopped_by_itself_is_not_trained_longer(tmp_path: Path) -> None:
    # Nothing moves at this rate, so that the first epoch stays the best.
    run_dir = begun(tmp_path / "run", epochs=9, lr=1e-30, patience=2)
    with pytest.raises(UsageError, match="it stopped after epoch 3 of 9 by patience or stop_when_still"):
        resumed(run_dir, epochs=20)


def test_a_finished_run_without_its_checkpoint_is_not_trained_longer(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run")
    (run_dir / rundir.CHECKPOINT).unlink()
    with pytest.raises(UsageError, match=r"expected checkpoints/last\.safetensors to go on from, found none"):
        resumed(run_dir, epochs=9)


def test_data_that_changed_since_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{n},{n % 7},{3 * n - n % 7}" for n in range(40)]
    table.write_text("\n".join(["a,b,y", *rows]) + "\n")
    changes: Values = {"data.name": str(table), "data.label": "y", "epochs": 2}
    run_dir = train(Request("mlp", tmp_path / "run", changes=changes), quiet)
    table.write_text("\n".join(["a,b,y", *rows, "9,9,9", "8,8,8"]) + "\n")

    with pytest.raises(UsageError, match=r"t\.csv: it has changed since the run .* its split train is another one"):
        resumed(run_dir, recipe="mlp", epochs=4)

    table.write_text("\n".join(["a,b,y", *rows]) + "\n")
    resumed(run_dir, recipe="mlp", epochs=4)


def test_an_unfinished_run_notices_one_value_that_changed(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{n},{n % 7},{3 * n - n % 7}" for n in range(40)]
    table.write_text("\n".join(["a,b,y", *rows]) + "\n")
    changes: Values = {"data.name": str(table), "data.label": "y", "epochs": 4, "checkpoint_every_s": 0}

    def stopping(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Request("mlp", tmp_path / "run", changes=changes), stopping)
    table.write_text("\n".join(["a,b,y", *rows[:-1], "39,5,7"]) + "\n")
    with pytest.raises(UsageError, match=r"t\.csv: it has changed since the run"):
        resumed(tmp_path / "run", recipe="mlp")


@pytest.mark.parametrize(
    ("found", "other", "what"),
    [
        ("a,b,colour", "b,a,colour", "file columns.json"),
        ("red", "rod", "file columns.json"),
        (",no\n", ",nay\n", "list of classes"),
    ],
)
def test_names_that_changed_are_other_data(tmp_path: Path, found: str, other: str, what: str) -> None:
    rows = [f"{row},{row * row % 7},{('red', 'blue')[row % 2]},{('yes', 'no')[row % 3 % 2]}\n" for row in range(40)]
    table, text = tmp_path / "t.csv", "a,b,colour,y\n" + "".join(rows)
    table.write_text(text)
    changes: Values = {"data.name": str(table), "data.label": "y", "epochs": 1}
    run_dir = train(Request("mlp", tmp_path / "run", changes=changes), lambda _line: None)
    table.write_text(text.replace(found, other))
    with pytest.raises(UsageError, match=f"it has changed since the run .* its {what} is another one"):
        resumed(run_dir, recipe="mlp", epochs=2)
    if what == "file columns.json":
        with pytest.raises(UsageError, match="its columns or their values have changed since the run"):
            open_run(run_dir).held_out()
    table.write_text(text)
    assert len(open_run(run_dir).held_out().labels) == 8


def test_rows_of_large_splits_are_sampled() -> None:
    wide = torch.zeros(2000, 1 << 16)
    split = Split((wide,), torch.arange(2000).unsqueeze(1).float())
    first = data_record(DataSet("d", "d", split, split))
    wide[1] = 1
    changed = data_record(DataSet("d", "d", split, split))
    assert first == changed, "row 1 is none of 256 in 2000"
    wide[0] = 1
    assert data_record(DataSet("d", "d", split, split)) != first


def test_a_run_that_chose_by_the_held_out_examples_is_not_resumed(tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run", keep_weights="best")
    config = run_dir / rundir.CONFIG
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "validation_share" not in line))
    with pytest.raises(UsageError, match="an earlier version began it and selects by the held-out examples"):
        resumed(run_dir, epochs=9)


def test_an_unfinished_run_takes_the_same_changes(tmp_path: Path) -> None:
    straight = begun(tmp_path / "straight", epochs=6, checkpoint_every_s=0)

    def stopping(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Request("linreg", tmp_path / "run", changes={**SMALL, "checkpoint_every_s": 0}), stopping)
    with pytest.raises(UsageError, match="'momentum': the run has 0"):
        resumed(tmp_path / "run", momentum=0.5)

    assert_same_run(resumed(tmp_path / "run", epochs=6), straight)


DIES_AT = """
import os, signal, sys
from pathlib import Path
from typing import Any
from fitserve_training import launch, rundir

calls = 0

def dying(function):
    def wrapped(*arguments, **keywords):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return wrapped

# Each of them is a change of what is on the disk.
for name in ("replace", "rename", "fsync", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
rundir.shutil.copyfileobj = dying(rundir.shutil.copyfileobj)
rundir.shutil.rmtree = dying(rundir.shutil.rmtree)
changes = {"epochs": 5, "checkpoint_every_s": 0}
launch.train(launch.Request("linreg", Path(sys.argv[1]), changes=changes, is_resumed=True), lambda line: None)
print(calls)
"""


def killed(run_dir: Path, at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DIES_AT, str(run_dir), str(at)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A finished run, the same trained longer, and how often that changes what is on the disk."""
    folder = tmp_path_factory.mktemp("finished")
    run_dir = begun(folder / "run")
    shutil.copytree(run_dir, folder / "longer")
    done = killed(folder / "longer", 0)
    assert done.returncode == 0, done.stderr
    return run_dir, folder / "longer", int(done.stdout)


# The first changes are those of reopening, the last those of putting the run in its place.
@pytest.mark.parametrize("share", [0.0, 0.08, 0.2, 0.33, 0.95, 1.0])
def test_a_kill_while_a_run_is_reopened_loses_nothing(
    share: float, finished: tuple[Path, Path, int], tmp_path: Path
) -> None:
    run_dir, longer, count = finished
    shutil.copytree(run_dir, tmp_path / "run")

    done = killed(tmp_path / "run", max(1, round(share * count)))

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert rundir.is_finished(tmp_path / "run") or rundir.is_finished(rundir.unfinished_path(tmp_path / "run"))
    resumed(tmp_path / "run", epochs=5, checkpoint_every_s=0)
    assert_same_run(tmp_path / "run", longer)


def test_seeds_go_on_together(tmp_path: Path) -> None:
    changes: Values = {**SMALL, "seed": 3}
    train_seeds(Request("linreg", tmp_path / "l", changes=changes), 2, quiet)
    folder = train_seeds(Request("linreg", tmp_path / "l", changes={"epochs": 5}, is_resumed=True), 3, quiet)

    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["seed-3", "seed-4", "seed-5"]
    for seed in (3, 5):
        straight = begun(tmp_path / f"straight-{seed}", epochs=5, seed=seed)
        assert_same_run(folder / f"seed-{seed}", straight)
    with pytest.raises(UsageError, match="'batch_size': the run has 10"):
        train_seeds(Request("linreg", tmp_path / "l", changes={"batch_size": 5}, is_resumed=True), 3, quiet)
