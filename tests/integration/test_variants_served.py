"""A small BERT with an int8 variant, live: the server says which file answers, and fp32 goes on where one fails."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import helper
from tests.wire.serving import serving, url

from fitserve_client import Client
from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import version_path
from fitserve_exporters import cli as exporter
from fitserve_service.variants import choices
from fitserve_training import cli as trainer

INPUTS = {"input_ids": np.array([[2, 5, 6, 3], [2, 7, 3, 0]]), "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]])}


def exported_bert(folder: Path) -> Path:
    """Trains a BERT of one layer on two labels and exports it with its int8 variant; gives the repository."""
    rows = [(f"{word} day number {i}", label) for i in range(20) for word, label in (("good", "up"), ("bad", "down"))]
    lines = [json.dumps({"text": text, "labels": [label]}) for text, label in rows]
    (folder / "t.jsonl").write_text("\n".join(lines))
    run, repository = str(folder / "run"), folder / "repository"
    settings = ["--set", "model.layers=1", "--set", "model.hidden_size=32", "--set", "epochs=10", "--set", "lr=3e-3"]
    assert trainer.main(["--data", str(folder / "t.jsonl"), "--run-dir", run, *settings]) == 0
    assert exporter.main([run, "--repository", str(repository), "--name", "days", "--variants", "int8"]) == 0
    return repository


def unknown_operator() -> bytes:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.example")
    return builders.model([node], [builders.value("x")], [builders.value("y")])


def served_variant(client: Client) -> str:
    """Reads which of its files a version says that it is served by."""
    return str(tomllib.loads(client.details("days").effective_config_toml)["variant"])


def test_int8_answers_as_it_was_proved_and_one_that_does_not_load_leaves_fp32_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = exported_bert(tmp_path)
    path = version_path(repository, "days", 1)
    manifest = read_manifest(path.folder)
    assert manifest is not None
    answers, scores = {}, {}
    for variant in ("fp32", "int8", "auto"):
        with serving(repository, variant=variant) as server, Client(url(server)) as client:
            assert served_variant(client) == choices(manifest, variant, "cpu")[0].name
            answers[variant] = client.predict("days", INPUTS).array
            scores[variant] = client.evaluate_held_out("days").figures["macro_f1"]

    record = choices(manifest, "int8", "cpu")[0].verification
    assert record is not None
    bound = max(record["tolerance"]["per_output"].values())
    assert answers["fp32"].shape == answers["int8"].shape == (2, 2)
    assert 0 < np.abs(answers["fp32"] - answers["int8"]).max() <= 2 * bound
    assert any(np.array_equal(answers["auto"], answers[name]) for name in ("fp32", "int8"))
    assert abs(scores["fp32"] - scores["int8"]) <= 0.005

    builders.rewrite(path, "model.int8.onnx", unknown_operator())
    with serving(repository, variant="int8", canary="auto") as server, Client(url(server)) as client:
        assert served_variant(client) == "fp32"
        assert "# variant int8 does not serve here: onnxruntime refused" in client.details("days").effective_config_toml
        np.testing.assert_array_equal(client.predict("days", INPUTS).array, answers["fp32"])
    assert "fp32 serves in its place" in caplog.text
