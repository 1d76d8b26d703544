"""Small checkpoints of many architectures, published and answered as transformers answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests.checkpoints import LABELS, TEXT, add_tokenizer, save, sentence_checkpoint

from fitserve_exporters.huggingface.publish_checkpoint import publish_checkpoint
from fitserve_exporters.publishing.published_version import PublishedVersion

pytestmark = pytest.mark.slow

SMALL = TEXT | LABELS
PICTURE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHER_NAMES = {"vocab_size": 60, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20, "pad_token_id": 0}

TEXTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", SMALL),
    "bert tokens": ("BertConfig", "BertForTokenClassification", SMALL),
    "bert hidden state": ("BertConfig", "BertModel", TEXT),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", SMALL | {"type_vocab_size": 1}),
    "roberta tokens": ("XLMRobertaConfig", "XLMRobertaForTokenClassification", SMALL | {"type_vocab_size": 1}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        OTHER_NAMES | LABELS | {"max_position_embeddings": 20},
    ),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", SMALL | {"embedding_size": 8}),
    "electra": ("ElectraConfig", "ElectraForTokenClassification", SMALL | {"embedding_size": 8}),
    "mpnet": ("MPNetConfig", "MPNetModel", TEXT),
    "deberta": ("DebertaV2Config", "DebertaV2ForSequenceClassification", SMALL | {"relative_attention": True}),
    "gpt2": ("GPT2Config", "GPT2ForSequenceClassification", GPT2 | LABELS),
    "several labels": (
        "BertConfig",
        "BertForSequenceClassification",
        SMALL | {"problem_type": "multi_label_classification"},
    ),
    "regression": ("BertConfig", "BertForSequenceClassification", TEXT | {"num_labels": 1}),
}

PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTForImageClassification", PICTURE | {"intermediate_size": 16} | LABELS),
    "deit": ("DeiTConfig", "DeiTForImageClassification", PICTURE | {"intermediate_size": 16} | LABELS),
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]} | LABELS,
    ),
    "vit hidden state": ("ViTConfig", "ViTModel", PICTURE | {"intermediate_size": 16}),
}


def made(folder: Path, config: str, model: str, values: dict[str, Any]) -> Any:
    """Writes a checkpoint; returns its model."""
    import transformers

    torch.manual_seed(0)
    network = getattr(transformers, model)(getattr(transformers, config)(**values)).eval()
    save(network, folder)
    return network


def compare(published: PublishedVersion, model: Any, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    """Holds the version against the model at batch sizes 1, 2 and 5."""
    session = onnxruntime.InferenceSession(published.folder / "model.onnx")
    names = [spec.name for spec in published.manifest.inputs]
    output = published.manifest.outputs[0].name
    for rows in (1, 2, 5):
        batch = {name: inputs[name][:rows] for name in names}
        with torch.inference_mode():
            answer = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        known = torch.sigmoid(answer.logits) if output == "probabilities" else answer[output]
        np.testing.assert_allclose(session.run([output], batch)[0], known.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", TEXTS)
def test_text_checkpoints_are_published_and_answer_alike(tmp_path: Path, name: str) -> None:
    model = made(tmp_path / "checkpoint", *TEXTS[name])
    published = publish_checkpoint(add_tokenizer(tmp_path / "checkpoint"), tmp_path / "repository", "m")
    generator = np.random.default_rng(1)
    lengths = np.array([9, 1, 4, 9, 6])
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    ids = generator.integers(5, 60, (5, 9)) * mask
    pad = getattr(model.config, "pad_token_id", 0) or 0
    types = np.zeros_like(ids)
    inputs = {"input_ids": np.where(mask == 1, ids, pad), "attention_mask": mask, "token_type_ids": types}
    compare(published, model, inputs)
    assert published.manifest.inputs[0].shape == ("batch", "sequence")


@pytest.mark.parametrize("name", PICTURES)
def test_picture_checkpoints_are_published_and_answer_alike(tmp_path: Path, name: str) -> None:
    model = made(tmp_path / "checkpoint", *PICTURES[name])
    facts = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(facts))
    published = publish_checkpoint(tmp_path / "checkpoint", tmp_path / "repository", "m")
    pictures = np.random.default_rng(1).normal(size=(5, 3, 16, 16)).astype(np.float32)
    compare(published, model, {"pixel_values": pictures})
    assert published.manifest.training["preprocessing"] == facts
    assert published.manifest.files_for_callers == ("preprocessor_config.json",)


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_sentence_checkpoints_are_published(tmp_path: Path, mode: str) -> None:
    folder = sentence_checkpoint(tmp_path / "checkpoint", {"pooling_mode": mode}, "Normalize")
    published = publish_checkpoint(folder, tmp_path / "repository", "m")
    (output,) = published.manifest.outputs
    assert (output.name, output.shape) == ("sentence_embedding", ("batch", 16))
    assert published.manifest.task is None
