"""A checkpoint that tags tokens: published with its task, served, and evaluated over gRPC with padding left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.checkpoints import text_checkpoint
from tests.wire.serving import serving, url
from torch import nn

import fitserve_exporters
from fitserve_client import Client, InvalidArgumentError
from fitserve_client import cli as client
from fitserve_contract.manifest import read_manifest
from fitserve_contract.pairing import pair
from fitserve_contract.scoring import score
from fitserve_contract.sums import TokenClassificationSums
from fitserve_contract.tasks import IGNORED_LABEL, Scores, Task, TaskKind
from fitserve_exporters import cli as exporter

NAMES = ("O", "B-PER", "I-PER")
TAGS = Task(TaskKind.TOKEN_CLASSIFICATION, "logits", Scores.LOGITS, NAMES)
COUNT, LENGTH = 40, 11


def padded_texts() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draws token ids of texts of 1 to 11 tokens; labels are -100 at the padding, and at every third token."""
    stream = np.random.default_rng(0)
    is_token = np.arange(LENGTH) < stream.integers(1, LENGTH + 1, (COUNT, 1))
    ids = np.where(is_token, stream.integers(5, 60, (COUNT, LENGTH)), 0)
    labels = np.where(is_token, stream.integers(0, 3, (COUNT, LENGTH)), IGNORED_LABEL)
    labels[:, 2::3] = IGNORED_LABEL
    mask = is_token.astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}, labels


def expected_logits(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import transformers

    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return np.asarray(model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits)


def test_a_held_out_set_of_tokens_is_evaluated_and_two_versions_are_compared(tmp_path: Path) -> None:
    inputs, labels = padded_texts()
    ids, outputs = torch.from_numpy(inputs["input_ids"]), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Embedding(60, 8), nn.Linear(8, 3)).eval()
        task, axes = replace(TAGS, output="output"), {"input": {1: "sequence"}}
        held_out = ([ids], labels)
        fitserve_exporters.export(module, [ids[:2, :4]], tmp_path, "tags", held_out=held_out, task=task, free_axes=axes)
        with torch.inference_mode():
            outputs.append(module(ids).numpy())
    (tmp_path / "tags" / "model.toml").write_text("keep_versions = 2\n")
    expected = pair(TAGS, outputs[0], outputs[1], labels, np.arange(COUNT))
    with serving(tmp_path) as server, Client(url(server)) as open_client:
        on_server = open_client.evaluate_held_out("tags", version=2)
        compared = open_client.compare("tags", (1, 2), {"input": inputs["input_ids"]}, labels, batch_size=16)
    sums = on_server.sums
    assert isinstance(sums, TokenClassificationSums)
    assert sums.positions.correct_count == ((outputs[1].argmax(2) == labels) & (labels != IGNORED_LABEL)).sum()
    assert compared.second.sums.example_count == COUNT
    assert compared.paired.difference_indices == expected.difference_indices
    assert compared.mcnemar is not None
    assert (compared.paired.both_count, compared.paired.first_only_count, compared.paired.second_only_count) == (
        expected.both_count,
        expected.first_only_count,
        expected.second_only_count,
    )


@pytest.mark.slow
def test_a_checkpoint_of_tokens_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = text_checkpoint(
        tmp_path / "checkpoint", "BertForTokenClassification", id2label=dict(enumerate(NAMES)), num_labels=3
    )
    repository = tmp_path / "repository"
    assert exporter.main(["hf", str(folder), "--repository", str(repository), "--name", "names"]) == 0
    manifest = read_manifest(repository / "names" / "1")
    assert manifest is not None
    assert manifest.task == TAGS
    inputs, labels = padded_texts()
    expected = score(TAGS, expected_logits(folder, inputs), labels)
    assert isinstance(expected, TokenClassificationSums)

    with serving(repository) as server, Client(url(server)) as open_client:
        found = open_client.evaluate("names", inputs, labels, batch_size=7)
        assert isinstance(found.sums, TokenClassificationSums)
        assert found.sums.example_count == COUNT
        assert found.sums.positions.true_positive_counts == expected.positions.true_positive_counts
        assert found.sums.positions.false_negative_counts == expected.positions.false_negative_counts
        assert found["loss"] == pytest.approx(expected.positions.mean_loss, rel=1e-5)
        assert found["exact_match"] == expected.exact_match
        wider = {name: np.pad(array, ((0, 0), (0, 3))) for name, array in inputs.items()}
        more = open_client.evaluate(
            "names", wider, np.pad(labels, ((0, 0), (0, 3)), constant_values=IGNORED_LABEL), batch_size=COUNT
        )
        assert more["accuracy"] == found["accuracy"]
        assert [each.example_count for each in more.classes] == [each.example_count for each in found.classes]
        for wrong, message in (
            (labels[:, :-1], r"labels: expected shape \(40, 11\), got \(40, 10\)"),
            (np.where(labels == IGNORED_LABEL, -1, labels), r"labels: expected 0\.\.2, or -100 where .*got -1"),
        ):
            with pytest.raises(InvalidArgumentError, match=message):
                open_client.evaluate("names", inputs, wrong, batch_size=COUNT)

        np.savez(tmp_path / "x.npz", labels=labels, **inputs)
        capsys.readouterr()
        assert client.main(["evaluate", "names", str(tmp_path / "x.npz"), "--server", url(server)]) == client.DONE
        said = capsys.readouterr().out
        assert f"of {(labels != IGNORED_LABEL).sum()} positions that count" in said
        assert "balanced accuracy" in said
        assert "I-PER" in said
        assert client.main(["evaluate", "names", str(tmp_path / "x.npz"), "--server", url(server), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [each["name"] for each in document["classes"]] == list(NAMES)
        assert document["figures"]["macro_f1"] == pytest.approx(found["macro_f1"])
        texts = ["w7 w8 w9", "w30"]
        arguments = [
            "predict",
            "names",
            *(part for text in texts for part in ("--text", text)),
            "--server",
            url(server),
        ]
        assert client.main([*arguments, "--json"]) == 0
        answers = json.loads(capsys.readouterr().out)["texts"]
        alone = expected_logits(
            folder, {name: array[:1, :1] for name, array in inputs.items()} | {"input_ids": np.array([[30]])}
        )
        assert [[token["text"] for token in answer["tokens"]] for answer in answers] == [["w7", "w8", "w9"], ["w30"]]
        assert answers[1]["tokens"][0]["name"] == NAMES[alone[0, 0].argmax()]
        assert client.main(arguments) == 0
        assert "w30" in capsys.readouterr().out
