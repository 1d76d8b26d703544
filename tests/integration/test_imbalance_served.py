"""Classes of unlike size from a table to Evaluate: the same figures in the run, the manifest and the client."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics
from tests.wire.serving import serving, url

from fitserve_client import Client
from fitserve_client import cli as client
from fitserve_contract.certificate import read_held_out
from fitserve_contract.manifest import read_manifest
from fitserve_exporters import cli as exporter
from fitserve_training import cli as trainer


def rare_table(path: Path) -> Path:
    """Writes 1 row in 12 of class `ill`, which overlaps the others."""
    stream = np.random.default_rng(0)
    is_ill = stream.random(480) < 1 / 12
    values = stream.standard_normal((480, 2)) + 1.2 * is_ill[:, None]
    rows = [f"{a:.4f},{b:.4f},{'ill' if each else 'well'}" for (a, b), each in zip(values, is_ill, strict=True)]
    path.write_text("\n".join(["a,b,state", *rows]) + "\n")
    return path


def test_balanced_figures_are_the_same_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, run, repository = rare_table(tmp_path / "t.csv"), tmp_path / "run", tmp_path / "repository"
    settings = ["--set", "data.label=state", "--set", "epochs=8", "--set", "threads=1"]
    assert trainer.main(["--data", str(table), "--run-dir", str(tmp_path / "plain"), *settings]) == 0
    assert "of the training examples are 'well'" in capsys.readouterr().out
    weighted = [*settings, "--set", "class_weights=balanced"]
    assert trainer.main(["--data", str(table), "--run-dir", str(run), *weighted]) == 0
    assert "recall: ill=" in capsys.readouterr().out
    assert exporter.main([str(run), "--repository", str(repository), "--name", "state"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    manifest, held_out = read_manifest(repository / "state" / "1"), read_held_out(repository / "state" / "1")
    assert manifest is not None
    assert manifest.task is not None
    assert held_out is not None

    with serving(repository) as server, Client(url(server)) as open_client:
        outputs = open_client.predict("state", dict(held_out.inputs)).outputs[manifest.task.output]
        found = open_client.evaluate("state", dict(held_out.inputs), held_out.labels, batch_size=13)
        np.savez(tmp_path / "h.npz", labels=held_out.labels, **held_out.inputs)
        capsys.readouterr()
        assert client.main(["evaluate", "state", str(tmp_path / "h.npz"), "--server", url(server), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)

    predicted = outputs.argmax(axis=1)
    balanced = metrics.balanced_accuracy_score(held_out.labels, predicted)
    macro = metrics.f1_score(held_out.labels, predicted, average="macro")
    recalls = metrics.recall_score(held_out.labels, predicted, average=None).tolist()
    assert (found["balanced_accuracy"], found["macro_f1"]) == pytest.approx((balanced, macro))
    assert (summary["test_balanced_accuracy"], summary["test_macro_f1"]) == pytest.approx((balanced, macro))
    served = next(iter(manifest.verification["providers"].values()))["metrics"]
    assert (served["balanced_accuracy"], served["macro_f1"]) == pytest.approx((balanced, macro))
    assert served["recalls"] == pytest.approx(recalls)
    for classes in (summary["classes"], document["classes"]):
        assert {each["name"]: each["recall"] for each in classes} == pytest.approx(
            dict(zip(("ill", "well"), recalls, strict=True))
        )
