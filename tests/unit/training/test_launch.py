"""Whole runs: what a run directory holds, what survives a kill, and what an exporter gets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fitserve_contract.tasks import TaskKind
from fitserve_training import rundir
from fitserve_training.config import Values
from fitserve_training.device import cpu_threads
from fitserve_training.errors import RunStoppedError, UsageError
from fitserve_training.launch import Request, train
from fitserve_training.outcome import check_required
from fitserve_training.runs import open_run

SMALL: Values = {"data.example_count": 60, "epochs": 4, "momentum": 0.9, "checkpoint_every_s": 0}

DIES_BEFORE_CHECKPOINT_3 = """
import os, signal, sys
from pathlib import Path
from fitserve_training import launch, recording

save = recording.save_checkpoint

def save_or_die(path, model, optimizer, progress):
    if progress["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, model, optimizer, progress)

recording.save_checkpoint = save_or_die
changes = {"data.example_count": 60, "epochs": 4, "momentum": 0.9, "checkpoint_every_s": 0}
launch.train(launch.Request("linreg", Path(sys.argv[1]), changes=changes), print)
"""


def quiet(_line: str) -> None:
    pass


def trained_linreg(run_dir: Path, **changes: str | int | float | bool) -> Path:
    return train(Request("linreg", run_dir, changes={**SMALL, **changes}), quiet)


def test_a_run_directory_holds_what_it_should(tmp_path: Path) -> None:
    said: list[str] = []
    run_dir = train(Request("thermometer", tmp_path / "t", changes={"epochs": 20}), said.append)

    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    assert names == {
        "config.toml",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "curve.jsonl",
        "summary.json",
        "weights.safetensors",
        "checkpoints/last.safetensors",
        "report.html",
        "loss.svg",
        "fit.svg",
    }
    rows = rundir.read_lines(run_dir / rundir.METRICS)
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert {"epoch", "train_loss", "test_loss", "examples_per_s"} <= rows[0].keys()
    summary = json.loads((run_dir / rundir.SUMMARY).read_text())
    assert summary["parameters"].keys() == {"w", "b"}
    assert (summary["device"], summary["compile"]["used"]) == ("cpu", "off")
    assert summary["train_loss"] == rows[-1]["train_loss"]
    assert not any("\n" in line for line in said)


@pytest.mark.slow
def test_the_published_thermometer(tmp_path: Path) -> None:
    run_dir = train(Request("thermometer", tmp_path / "t"), quiet)

    summary = json.loads((run_dir / rundir.SUMMARY).read_text())
    rows = {row["epoch"]: row["train_loss"] for row in rundir.read_lines(run_dir / rundir.METRICS)}
    assert summary["train_loss"] == pytest.approx(2.927648, abs=2e-6)
    assert summary["parameters"] == pytest.approx({"w": 5.3671, "b": -17.3012}, abs=1e-4)
    assert {e: rows[e] for e in (1, 2, 3, 10, 100)} == pytest.approx(
        {1: 80.364342, 2: 37.574917, 3: 30.871077, 10: 29.030487, 100: 22.148710}, rel=1e-6
    )
    assert all(band["is_inside"] for band in summary["published"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_published_linreg(seed: int, tmp_path: Path) -> None:
    run_dir = train(Request("linreg", tmp_path / "l", changes={"seed": seed}), quiet)

    summary = json.loads((run_dir / rundir.SUMMARY).read_text())
    assert 9.2e-5 <= summary["train_loss"] <= 1.16e-4
    assert all(abs(summary["parameters"][key]) < 2e-3 for key in ("w1_error", "w2_error", "b_error"))


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    straight = trained_linreg(tmp_path / "straight")

    killed = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_CHECKPOINT_3, str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    resumed = train(Request("linreg", tmp_path / "killed", is_resumed=True), quiet)

    expected, found = (load_file(run / rundir.WEIGHTS) for run in (straight, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows = rundir.read_lines(resumed / rundir.METRICS)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    losses = [row["train_loss"] for row in rundir.read_lines(straight / rundir.METRICS)]
    assert [row["train_loss"] for row in rows] == losses


def test_a_run_records_and_keeps_its_number_of_threads(tmp_path: Path) -> None:
    said: list[str] = []
    small: Values = {"data.name": "digits", "epochs": 1}

    with cpu_threads(1):
        run_dir = train(Request("lenet", tmp_path / "default", changes=small), said.append)
        train(Request("lenet", tmp_path / "named", changes={**small, "threads": 2}), said.append)
        threads_afterwards = torch.get_num_threads()

    assert "threads = 1" in (run_dir / rundir.CONFIG).read_text().splitlines()
    assert threads_afterwards == 1
    assert [line.split(",")[0] for line in said if line.startswith("device")] == [
        "device cpu (1 thread)",
        "device cpu (2 threads)",
    ]


def test_a_finished_run_needs_no_resuming(tmp_path: Path) -> None:
    run_dir = trained_linreg(tmp_path / "run")
    before = (run_dir / rundir.SUMMARY).read_bytes()
    said: list[str] = []

    assert train(Request("linreg", run_dir, is_resumed=True), said.append) == run_dir

    assert said == [f"run {run_dir} is finished already; nothing to resume"]
    assert (run_dir / rundir.SUMMARY).read_bytes() == before


def test_the_same_run_twice_gives_the_same_bits_and_pictures(tmp_path: Path) -> None:
    first, second = (trained_linreg(tmp_path / name) for name in ("a", "b"))

    for name in (rundir.WEIGHTS, rundir.CONFIG, rundir.CURVE, "loss.svg"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_diverged_run_does_not_replace_a_good_one(tmp_path: Path) -> None:
    run_dir = trained_linreg(tmp_path / "run")
    before = (run_dir / rundir.SUMMARY).read_bytes()

    with pytest.raises(RunStoppedError, match=r"the loss is (inf|nan) at epoch"):
        trained_linreg(run_dir, lr=1e30)

    assert (run_dir / rundir.SUMMARY).read_bytes() == before


def test_a_request_that_cannot_be_carried_out_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="optimizer adam has no momentum"):
        trained_linreg(tmp_path / "run", optimizer="adam")
    assert not list(tmp_path.iterdir())


def test_required_figures_stop_a_run() -> None:
    band = {"metric": "train_loss", "low": 0.0, "high": 0.5, "is_required": True, "value": 0.6, "is_inside": False}

    with pytest.raises(RunStoppedError, match=r"train_loss is 0\.6 after epoch 10, expected 0 to 0\.5"):
        check_required({"recipe": "softmax", "epoch": 10, "published": [band]})
    check_required({"recipe": "softmax", "epoch": 10, "published": [{**band, "is_required": False}]})


def test_an_exporter_gets_the_trained_module(tmp_path: Path) -> None:
    run_dir = train(Request("softmax", tmp_path / "s", changes={"data.name": "digits", "epochs": 3}), quiet)

    run = open_run(run_dir)
    held_out = run.held_out()

    assert (run.recipe, run.output_names, run.task.kind) == ("softmax", ("logits",), TaskKind.CLASSIFICATION)
    assert run.inputs[0].shape == ("batch", 1, 28, 28)
    assert not run.module.training
    assert held_out.labels.dtype == np.int64
    logits = run.module(torch.from_numpy(held_out.inputs["image"]))
    accuracy = (logits.argmax(1).numpy() == held_out.labels).mean()
    assert accuracy == run.training_record["metrics"]["test_accuracy"]
    assert json.loads(json.dumps(run.training_record)) == run.training_record
    assert held_out.sha256 == run.training_record["data"]["held_out_sha256"]


def test_a_run_serves_raw_readings(tmp_path: Path) -> None:
    run = open_run(train(Request("thermometer", tmp_path / "t", changes={"epochs": 500}), quiet))

    parameters = run.training_record["parameters"]
    answer = run.module(torch.tensor([[55.9]])).item()

    assert answer == pytest.approx(parameters["w"] * 5.59 + parameters["b"], rel=1e-5)
    assert run.held_out().labels.shape == (11, 1)


def test_what_is_no_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a finished run"):
        open_run(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    run_dir = trained_linreg(tmp_path / "run")
    weights = run_dir / rundir.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-3])

    with pytest.raises(UsageError, match=r"weights\.safetensors: cannot be read"):
        open_run(run_dir)


def test_other_held_out_data_is_refused(tmp_path: Path) -> None:
    run_dir = trained_linreg(tmp_path / "run")
    summary = json.loads((run_dir / rundir.SUMMARY).read_text())
    summary["data"]["held_out_sha256"] = "0" * 64
    (run_dir / rundir.SUMMARY).write_text(json.dumps(summary))

    with pytest.raises(UsageError, match="held-out data synthetic: expected SHA-256 0000"):
        open_run(run_dir).held_out()


FILLS_THE_DISK = """
import resource, sys
from fitserve_training.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def on_a_small_disk(most_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command where no file may grow beyond so many bytes, as on a full disk."""
    command = [sys.executable, "-c", FILLS_THE_DISK, str(most_bytes), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_full_disk_before_the_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    arguments = ("softmax", "--data", "digits", "--set", "epochs=2", "--run-dir", str(tmp_path / "run"))

    done = on_a_small_disk(20_000, *arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"run directory {tmp_path / 'run.unfinished'}: cannot be written: " in done.stderr
    assert "nothing was kept" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_after_a_checkpoint_leaves_what_can_be_resumed(tmp_path: Path) -> None:
    arguments = ("softmax", "--data", "digits", "--set", "epochs=2", "--run-dir", str(tmp_path / "run"))

    # The checkpoint has 32 kB; the report, which is larger, no longer fits.
    done = on_a_small_disk(50_000, *arguments)
    assert done.returncode == 2
    assert "--resume goes on there" in done.stderr
    assert not list((tmp_path / "run.unfinished").rglob(".*.part"))

    resumed = train(Request("softmax", tmp_path / "run", is_resumed=True), quiet)
    straight = train(Request("softmax", tmp_path / "straight", changes={"data.name": "digits", "epochs": 2}), quiet)
    assert (resumed / rundir.WEIGHTS).read_bytes() == (straight / rundir.WEIGHTS).read_bytes()


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    other = train(Request("softmax", tmp_path / "other", changes={"data.name": "digits", "epochs": 1}), quiet)
    unfinished = tmp_path / "run.unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / rundir.CONFIG).write_text('recipe = "linreg"\n')
    (unfinished / rundir.CHECKPOINT).write_bytes((other / rundir.CHECKPOINT).read_bytes())

    with pytest.raises(UsageError, match=r"last\.safetensors: of another model"):
        train(Request("linreg", tmp_path / "run", is_resumed=True), quiet)


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_at_the_same_bits(tmp_path: Path) -> None:
    changes = ["--set=epochs=40", "--set=momentum=0.9", "--set=lr_schedule=cosine", "--set=checkpoint_every_s=0"]
    straight = tmp_path / "straight"
    command = [sys.executable, "-m", "fitserve_training.cli", "linreg", "--run-dir"]
    assert subprocess.run([*command, str(straight), *changes], capture_output=True, check=False).returncode == 0

    for number, lines in enumerate((1, 5)):
        run_dir = tmp_path / f"run-{number}"
        with subprocess.Popen([*command, str(run_dir), *changes], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
        is_begun = (tmp_path / f"run-{number}.unfinished" / rundir.CONFIG).is_file()
        arguments = ["--resume"] if is_begun or run_dir.is_dir() else changes
        done = subprocess.run([*command, str(run_dir), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (run_dir / rundir.WEIGHTS).read_bytes() == (straight / rundir.WEIGHTS).read_bytes()
