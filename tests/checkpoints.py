"""Small checkpoints of random weights, written as transformers and sentence-transformers write them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}
LABELS = {"id2label": {0: "bad", 1: "so so", 2: "good"}, "label2id": {"bad": 0, "so so": 1, "good": 2}}


def text_checkpoint(folder: Path, model: str = "BertForSequenceClassification", **config: Any) -> Path:
    """Writes a BERT of one layer with a tokenizer of 60 words w0 to w59."""
    import transformers

    save(getattr(transformers, model)(transformers.BertConfig(**TEXT | config)), folder)
    return add_tokenizer(folder)


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Writes a model without a progress bar on the terminal."""
    import transformers

    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def add_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(60)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sentence_checkpoint(folder: Path, pooling: dict[str, Any], *others: str) -> Path:
    """Writes a model of sentence-transformers: a transformer, a pooling, and modules of other kinds."""
    text_checkpoint(folder, "BertModel")
    kinds = ["Transformer", "Pooling", *others]
    entries = [
        {"idx": place, "name": str(place), "path": f"{place}_{kind}" if place else "", "type": f"{PREFIX}.{kind}"}
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": True}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    return folder


PREFIX = "sentence_transformers.models"


def edit_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None removes them."""
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


PREPROCESSING = {
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}


def picture_checkpoint(folder: Path, kind: str = "vit") -> Path:
    """Writes a small encoder of pictures of 16 x 16: a ViT, a ResNet (batch norms), or a CLIP (of one size alone)."""
    import torch
    import transformers

    torch.manual_seed(0)
    patches = {"image_size": 16, "patch_size": 4}
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "vit":
        model: Any = transformers.ViTForImageClassification(transformers.ViTConfig(**patches, **layers))
    elif kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        model = transformers.ResNetForImageClassification(config)
    else:
        model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=patches | layers, text_config=layers))
    save(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def coloured_pictures(root: Path, count: int, shift: int) -> Path:
    """Writes folders of red and of green noise, `count` pictures (20, 24, 3) each, and returns their root.

    Args:
        shift: By how much a picture's own channel is brighter, at most 155.
    """
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (root / name).mkdir()
        for index in range(count):
            pixels = random.integers(0, 100, (20, 24, 3)).astype(np.uint8)
            pixels[..., channel] += shift
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root
