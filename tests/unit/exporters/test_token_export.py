"""Modules and files that answer one of n classes per position, from labels with padding to a manifest with figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fitserve_exporters
from fitserve_contract.certificate import read_held_out
from fitserve_contract.manifest import read_manifest
from fitserve_contract.scoring import score
from fitserve_contract.sums import TokenClassificationSums
from fitserve_contract.tasks import IGNORED_LABEL, Scores, Task, TaskKind
from fitserve_exporters.card import model_card
from fitserve_exporters.errors import ExportError

NAMES = ("O", "B-PER", "I-PER")
TAGS = Task(TaskKind.TOKEN_CLASSIFICATION, "logits", Scores.LOGITS, NAMES)
COUNT, LENGTH = 30, 9


class Tagger(nn.Module):
    """Tags tokens (B, S): logits (B, S, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.embedding(input_ids))}


@pytest.fixture
def tagger() -> Tagger:
    torch.manual_seed(0)
    return Tagger().eval()


def tokens() -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.default_rng(0)
    ids, labels = stream.integers(0, 20, (COUNT, LENGTH)), stream.integers(0, 3, (COUNT, LENGTH))
    labels[np.arange(LENGTH) >= stream.integers(1, LENGTH + 1, (COUNT, 1))] = IGNORED_LABEL
    return ids, labels


def test_a_tagger_is_published_with_the_figures_of_the_positions_that_count(tagger: Tagger, tmp_path: Path) -> None:
    ids, labels = tokens()
    published = fitserve_exporters.export(
        tagger,
        [torch.from_numpy(ids[:2, :4])],
        tmp_path / "repository",
        "tagger",
        held_out=([torch.from_numpy(ids)], labels),
        task=TAGS,
        free_axes={"input_ids": {1: "sequence"}},
    )
    manifest = read_manifest(published.folder)
    assert manifest is not None
    assert manifest.task == TAGS
    assert manifest.outputs[0].shape == ("batch", "sequence", 3)
    with torch.inference_mode():
        sums = score(TAGS, tagger(torch.from_numpy(ids))["logits"].numpy(), labels)
    assert isinstance(sums, TokenClassificationSums)
    assert sums.positions.per_class is not None
    for figures in (manifest.verification["torch"], *manifest.verification["providers"].values()):
        found = figures["metrics"]
        assert (found["correct_position_count"], found["position_count"]) == (
            sums.positions.correct_count,
            (labels != IGNORED_LABEL).sum(),
        )
        assert found["balanced_accuracy"] == pytest.approx(sums.positions.per_class.balanced_accuracy)
        assert found["recalls"] == list(sums.positions.per_class.recalls)
    sample = read_held_out(published.folder)
    assert sample is not None
    np.testing.assert_array_equal(sample.labels, labels[sample.indices])
    page = model_card(manifest).decode()
    assert "Recall of each class" in page
    assert "I-PER" in page
    json.dumps(published.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((COUNT, LENGTH - 1), int), r"labels: expected shape \(30, 9\), got \(30, 8\)"),
        (np.zeros(COUNT, int), r"labels: expected shape .*; token_classification has one class index per position"),
        (np.full((COUNT, LENGTH), -1), r"labels: expected 0\.\.2, or -100 where a position does not count, got -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tagger: Tagger, tmp_path: Path, labels: np.ndarray, message: str) -> None:
    ids, _ = tokens()
    with pytest.raises(ExportError, match=message):
        fitserve_exporters.export(
            tagger,
            [torch.from_numpy(ids[:2])],
            tmp_path,
            "tagger",
            held_out=([torch.from_numpy(ids)], labels),
            task=TAGS,
            free_axes={"input_ids": {1: "sequence"}},
        )


def test_a_file_is_published_by_the_kind_of_its_task(tagger: Tagger, tmp_path: Path) -> None:
    ids, labels = tokens()
    made = fitserve_exporters.export(
        tagger, [torch.from_numpy(ids[:2])], tmp_path / "a", "tagger", free_axes={"input_ids": {1: "sequence"}}
    )

    def reference(input_ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(tagger(torch.from_numpy(input_ids))["logits"])

    published = fitserve_exporters.publish_onnx(
        made.folder / "model.onnx",
        reference,
        ids[:4],
        tmp_path / "b",
        "tagger",
        held_out=(ids, labels),
        task="token_classification",
        class_names=list(NAMES),
    )
    assert published.manifest.task == TAGS
    assert published.manifest.verification["torch"]["metrics"]["position_count"] == (labels != IGNORED_LABEL).sum()
