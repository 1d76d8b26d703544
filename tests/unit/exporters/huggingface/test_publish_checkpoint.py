"""Checkpoints that become versions, and answer as transformers does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests.checkpoints import LABELS, sentence_checkpoint, text_checkpoint

from fitserve_contract.checkpoints import image_size, open_checkpoint
from fitserve_contract.manifest import read_manifest
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.cli import main
from fitserve_exporters.errors import ExportError
from fitserve_exporters.hf_command import TASKS
from fitserve_exporters.huggingface.checkpoint import class_names, find_folder
from fitserve_exporters.huggingface.loading import CheckpointTask, load
from fitserve_exporters.huggingface.preparation import tokenizer_json
from fitserve_exporters.huggingface.sentence_modules import Pooling, read_sentence_modules

IDS = np.array([[5, 6, 7, 8, 9, 0], [9, 8, 7, 0, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
TYPES = np.zeros_like(IDS)
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}


@pytest.mark.slow
def test_the_command_publishes_a_classifier_that_answers_as_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    folder = text_checkpoint(tmp_path / "checkpoint", **LABELS)
    code = main(["hf", str(folder), "--repository", str(tmp_path / "repository"), "--name", "mood", "--json"])
    seen = capsys.readouterr()
    assert (code, seen.err) == (0, "")
    version = Path(json.loads(seen.out)["folder"])
    manifest = read_manifest(version)
    assert manifest is not None
    assert manifest.task == Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, ("bad", "so so", "good"))
    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [(name, ("batch", "sequence")) for name in INPUTS]
    assert manifest.inputs[0].range_texts() == ["sequence at least 1, at most 20"]
    assert "tokenizer.json" in manifest.files_for_callers
    session = onnxruntime.InferenceSession(version / "model.onnx")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for rows in (1, 2):
        batch = {name: array[:rows] for name, array in INPUTS.items()}
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()
        np.testing.assert_allclose(session.run(["logits"], batch)[0], expected, atol=1e-5)


def module_of(folder: Path, task: CheckpointTask | None = None) -> Any:
    found = read_sentence_modules(folder)
    checkpoint = open_checkpoint(folder, found[0] if found else None)
    return load(checkpoint, task or CheckpointTask.EMBEDDING, found[1] if found else None).module


def hidden_state(folder: Path) -> np.ndarray[Any, Any]:
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return np.asarray(model(**{k: torch.from_numpy(v) for k, v in INPUTS.items()}).last_hidden_state)


@pytest.mark.parametrize(
    "config", [{"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, {"pooling_mode": "mean"}]
)
def test_sentence_models_pool_and_normalize_as_their_files_say(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = sentence_checkpoint(tmp_path / "checkpoint", config, "Normalize")
    with torch.inference_mode():
        answers = module_of(folder)(*map(torch.from_numpy, INPUTS.values()))
    hidden, weights = hidden_state(folder), MASK[..., None]
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert set(answers) == {"sentence_embedding"}
    np.testing.assert_allclose(answers["sentence_embedding"].numpy(), expected, atol=1e-5)


def test_poolings_are_those_of_sentence_transformers() -> None:
    hidden, mask = torch.randn(2, 6, 4), torch.from_numpy(MASK)
    assert torch.equal(Pooling(("cls",))(hidden, mask), hidden[:, 0])
    longest = torch.stack([hidden[0, :5].max(dim=0).values, hidden[1, :3].max(dim=0).values])
    assert torch.equal(Pooling(("max",))(hidden, mask), longest)
    mean = torch.stack([hidden[0, :5].mean(dim=0), hidden[1, :3].mean(dim=0)])
    torch.testing.assert_close(Pooling(("mean",))(hidden, mask), mean)
    root = torch.stack([hidden[0, :5].sum(dim=0) / 5**0.5, hidden[1, :3].sum(dim=0) / 3**0.5])
    torch.testing.assert_close(Pooling(("mean_sqrt_len_tokens",))(hidden, mask), root)
    assert Pooling(("cls", "mean"))(hidden, mask).shape == (2, 8)


def test_a_plain_model_gives_its_last_hidden_state(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "checkpoint", "BertModel")
    with torch.inference_mode():
        answers = module_of(folder)(*map(torch.from_numpy, INPUTS.values()))
    np.testing.assert_allclose(answers["last_hidden_state"].numpy(), hidden_state(folder), atol=1e-5)


def test_half_precision_and_shards_are_read(tmp_path: Path) -> None:
    import transformers
    from tests.checkpoints import save

    whole = text_checkpoint(tmp_path / "whole")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(whole)
    sharded = save(model, tmp_path / "sharded", max_shard_size="4KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    half = save(model.half(), tmp_path / "half")
    inputs = [torch.from_numpy(array) for array in INPUTS.values()]
    with torch.inference_mode():
        one, other = (module_of(folder, CheckpointTask.TEXT)(*inputs)["logits"] for folder in (whole, sharded))
        narrow = module_of(half, CheckpointTask.TEXT)(*inputs)["logits"]
    assert torch.equal(one, other)
    assert narrow.dtype == torch.float32


def test_several_labels_become_probabilities(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "checkpoint", problem_type="multi_label_classification", **LABELS)
    loaded = load(open_checkpoint(folder), CheckpointTask.TEXT)
    assert loaded.task == Task(TaskKind.MULTI_LABEL, "probabilities", Scores.PROBABILITIES, ("bad", "so so", "good"))
    with torch.inference_mode():
        answers = loaded.module(*map(torch.from_numpy, INPUTS.values()))["probabilities"]
    assert ((answers > 0) & (answers < 1)).all()


def test_the_tokenizer_cuts_and_pads_as_the_model_needs(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = sentence_checkpoint(tmp_path / "checkpoint", {"pooling_mode": "mean"})
    tokenizer = Tokenizer.from_buffer(tokenizer_json(open_checkpoint(folder)))
    assert tokenizer.truncation["max_length"] == 16
    long, short = tokenizer.encode_batch(["W5 " * 30, "w6"])
    assert (len(long.ids), long.ids[0]) == (16, 5)
    assert (len(short.ids), sum(short.attention_mask)) == (16, 1)


def test_a_checkpoint_of_the_hubs_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--mood" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--mood" / "refs").mkdir()
    (tmp_path / "models--someone--mood" / "refs" / "main").write_text("0" * 40)
    (tmp_path / "blob").write_text("{}")
    os.symlink(tmp_path / "blob", snapshot / "config.json")
    assert find_folder("someone/mood") == snapshot


@pytest.mark.parametrize(
    ("facts", "config", "size"),
    [
        ({"size": {"height": 8, "width": 6}}, {}, (8, 6)),
        ({"size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 8}}, {}, (8, 8)),
        ({"size": 8}, {}, (8, 8)),
        ({"size": {"shortest_edge": 9}, "crop_size": 7, "do_center_crop": False}, {"image_size": 8}, (8, 8)),
        ({"size": {"shortest_edge": 9}}, {}, (9, 9)),
    ],
)
def test_the_size_of_pictures_is_read(facts: dict[str, Any], config: dict[str, Any], size: tuple[int, int]) -> None:
    assert image_size(facts, config) == size


def test_the_command_offers_every_task() -> None:
    assert tuple(CheckpointTask) == TASKS


def test_class_names_are_in_order() -> None:
    assert (
        class_names({"id2label": {"1": "b", "0": "a", "10": "k"} | {str(i): str(i) for i in range(2, 10)}}, 11)[-1]
        == "k"
    )
    assert class_names({}, 2) == ("LABEL_0", "LABEL_1")
    with pytest.raises(ExportError, match="id2label"):
        class_names({"id2label": {"0": "a"}}, 2)
