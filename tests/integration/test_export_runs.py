"""From a finished run to a published version, by the commands that people type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fitserve_contract.certificate import read_held_out, read_probe
from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import CARD_FILE, MODEL_FILE, verify_checksums, versions
from fitserve_contract.scoring import score
from fitserve_contract.sums import ClassificationSums
from fitserve_contract.tasks import TaskKind
from fitserve_exporters import cli
from fitserve_exporters.card import model_card
from fitserve_exporters.lint import lint
from fitserve_training.cli import main as train


def run_of(folder: Path, recipe: str, *settings: str) -> Path:
    run_dir = folder / "run"
    chosen = [argument for setting in settings for argument in ("--set", setting)]
    arguments = [recipe, "--run-dir", str(run_dir), "--compile", "off", "--seed", "1", *chosen]
    assert train(arguments) == 0
    return run_dir


def test_thermometer_takes_raw_readings_and_gives_celsius(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run_of(tmp_path, "thermometer", "epochs=200")
    capsys.readouterr()
    assert cli.main([str(run_dir), "--repository", str(tmp_path / "repository"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["version"]) == ("thermometer", 1)
    manifest = read_manifest(Path(printed["folder"]))
    assert manifest is not None
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.inputs] == [("x", "FP32", ("batch", 1))]
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.outputs] == [("y", "FP32", ("batch", 1))]
    assert manifest.task is not None
    assert manifest.task.kind is TaskKind.REGRESSION
    assert manifest.training["recipe"] == "thermometer"
    session = onnxruntime.InferenceSession(Path(printed["folder"], MODEL_FILE), providers=["CPUExecutionProvider"])
    celsius = session.run(["y"], {"x": np.array([[35.7], [81.9]], np.float32)})[0]
    assert celsius[1, 0] > celsius[0, 0]


def test_image_recipe_carries_its_accuracy_and_its_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run_of(tmp_path, "softmax", "epochs=2", "data.name=digits")
    capsys.readouterr()
    assert cli.main([str(run_dir), "--repository", str(tmp_path / "repository"), "--name", "digits"]) == 0
    text = capsys.readouterr().out
    assert "published digits version 1" in text
    assert "the same as torch's" in text
    folder = tmp_path / "repository" / "digits" / "1"
    verify_checksums(folder)
    manifest, held_out, probe = read_manifest(folder), read_held_out(folder), read_probe(folder)
    assert manifest is not None
    assert manifest.task is not None
    assert held_out is not None
    assert probe is not None
    assert [spec.shape for spec in (*manifest.inputs, *manifest.outputs)] == [("batch", 1, 28, 28), ("batch", 10)]
    assert lint(folder / MODEL_FILE).can_be_served
    figures = manifest.verification
    assert [row["batch_size"] for row in figures["latency"]["CPUExecutionProvider"]] == [1, 2, 7, 256]
    assert [epoch for epoch, _ in manifest.training["curves"]["accuracy"]["test"]] == [1, 2]
    card = (folder / CARD_FILE).read_bytes()
    assert card == model_card(manifest)
    assert card.count(b"</svg>") == 2
    served = figures["providers"]["CPUExecutionProvider"]
    sizes = [batch["batch_size"] for batch in served["batches"]]
    assert sizes == [1, 2, 7, 256]
    assert served["metrics"]["correct_count"] == figures["torch"]["metrics"]["correct_count"]
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    scores = session.run(["logits"], {"image": held_out.inputs["image"]})[0]
    sums = score(manifest.task, scores, held_out.labels)
    assert isinstance(sums, ClassificationSums)
    assert len(held_out.labels) == served["metrics"]["example_count"]
    assert sums.correct_count == served["metrics"]["correct_count"]
    replayed = session.run(["logits"], dict(probe.inputs))[0]
    tolerance = figures["tolerance"]["per_output"]["logits"]
    assert np.abs(replayed - probe.fp64["logits"]).max() <= tolerance


@pytest.mark.slow
def test_exporters_that_race_get_two_versions(tmp_path: Path) -> None:
    run_dir = run_of(tmp_path, "linreg", "epochs=1")
    script = "import sys; from fitserve_exporters.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, str(run_dir), "--repository", str(tmp_path / "repository"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    printed = [json.loads(racer.communicate()[0]) for racer in racers]
    assert sorted(entry["version"] for entry in printed) == [1, 2]
    assert versions(tmp_path / "repository", "linreg") == [1, 2]
    models = [Path(entry["folder"], MODEL_FILE).read_bytes() for entry in printed]
    assert models[0] == models[1]
    for entry in printed:
        verify_checksums(Path(entry["folder"]))


def test_unfinished_run_and_changed_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run_of(tmp_path, "linreg", "epochs=1")
    arguments = [str(run_dir), "--repository", str(tmp_path / "repository")]
    capsys.readouterr()
    (run_dir / "summary.json").rename(tmp_path / "summary.json")
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "summary.json").rename(run_dir / "summary.json")
    config = (run_dir / "config.toml").read_text()
    (run_dir / "config.toml").write_text(config.replace('"linreg"', '"linregg"'))
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "linregg" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "repository").exists()
