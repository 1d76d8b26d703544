"""BERT with a linear layer over its pooler, or another pretrained encoder with a new head, for any of C labels or one.

Logits in training; served are probabilities of any of C, and logits of one of C.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (2019), and
Demszky et al., "GoEmotions: A Dataset of Fine-Grained Emotions" (2020). Shapes: B sentences, S tokens, C labels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fitserve_contract.checkpoints import Checkpoint
from fitserve_training.config import RunConfig, Scalar
from fitserve_training.data import sentences
from fitserve_training.data.dataset import DataSet
from fitserve_training.data.own.texts import load_texts
from fitserve_training.data.places import Places
from fitserve_training.data.pretrained import open_weights, told
from fitserve_training.data.sentences import Corpus
from fitserve_training.data.tokens import FILE as TOKENIZER_FILE
from fitserve_training.data.tokens import checkpoint_tokenizer, own_tokenizer, read_tokenizer, tokenized
from fitserve_training.encoders.text_classifier import (
    TextClassifier,
    TextEncoder,
    load_text_encoder,
    open_text_encoder,
)
from fitserve_training.errors import UsageError
from fitserve_training.form import Form
from fitserve_training.objectives import Classification, MultiLabel
from fitserve_training.recipe import Recipe, ServedInput

if TYPE_CHECKING:
    from transformers import BertConfig

_BERT_FILE, _ENCODER_FILE = "bert_config.json", "encoder.json"
_MAX_POSITIONS = 512
_WITH_WEIGHTS: dict[str, Scalar] = {"threads": 0, "lr": 5e-5, "batch_size": 16, "epochs": 10}
"""The published fine-tuning: BERT-base reached macro-F1 0.503 with it."""


class BertMultiLabel(nn.Module):
    """Encoder with pooler, dropout, linear.

    Args:
        config: Of the encoder.
        class_count: C.
        is_frozen: The encoder is not trained, and its dropout is off.
    """

    def __init__(self, config: BertConfig, class_count: int, is_frozen: bool) -> None:
        from transformers import BertModel

        super().__init__()
        self._is_frozen = is_frozen
        self.encoder = BertModel(config)
        self.encoder.requires_grad_(not is_frozen)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.linear = nn.Linear(config.hidden_size, class_count)

    def train(self, mode: bool = True) -> BertMultiLabel:
        """Sets the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._is_frozen:
            self.encoder.eval()  # type: ignore[no-untyped-call]
        return self

    def forward(self, input_ids_BS: Tensor, attention_mask_BS: Tensor) -> Tensor:
        """Maps token ids and their mask (1 for tokens, 0 for padding), int64 (B, S), to logits (B, C)."""
        encoded = self.encoder(input_ids=input_ids_BS, attention_mask=attention_mask_BS)
        logits_BC: Tensor = self.linear(self.dropout(encoded.pooler_output))
        return logits_BC


class Probabilities(nn.Module):
    """A model of logits with the sigmoid behind it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps int64 (B, S) twice to probabilities (B, C)."""
        probabilities_BC: Tensor = self.model(input_ids, attention_mask).sigmoid()
        return probabilities_BC


def preset_for(data_name: str, values: Mapping[str, Scalar]) -> str:
    """A pretrained BERT is tuned with other settings than a small one learns with."""
    return "pretrained" if values.get("model.weights") else data_name


def load_data(config: RunConfig, places: Places, form: Form | None = None) -> DataSet:
    """Loads and encodes the sentences that `data.name` says.

    Args:
        config: Of the run.
        places: Where named data may be.
        form: Of a run that is there already, which needs its checkpoint no more.

    Raises:
        UsageError: data or checkpoint cannot be read, or a setting is out of range.
    """
    weights = str(config.model["weights"])
    max_length = int(config.data["max_length"])
    if not 3 <= max_length <= _MAX_POSITIONS:
        raise UsageError(f"setting 'data.max_length': expected 3 to {_MAX_POSITIONS}, got {max_length}")
    if form:
        files = {name: content for name, content in form.files.items() if name != TOKENIZER_FILE}
        return tokenized(_corpus(config, places), read_tokenizer(form.files[TOKENIZER_FILE]), files)
    if weights:
        checkpoint = open_weights(weights)
        files = _checkpoint_files(weights, checkpoint)
        tokenizer = checkpoint_tokenizer(weights, checkpoint, max_length)
        return tokenized(_corpus(config, places), tokenizer, files)
    corpus = _corpus(config, places)
    tokenizer = own_tokenizer(corpus.train.texts, int(config.model["vocabulary_size"]), max_length)
    network = _small_config(config, tokenizer.get_vocab_size())
    size = f"{network['num_hidden_layers']} layers of hidden size {network['hidden_size']}"
    note = f"no model.weights given: a small BERT from scratch, {size}, which is not a pretrained one"
    corpus = replace(corpus, note="; ".join(part for part in (note, corpus.note) if part))
    return tokenized(corpus, tokenizer, {_BERT_FILE: _json(network)})


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode()


def _corpus(config: RunConfig, places: Places) -> Corpus:
    name = str(config.data["name"])
    if name == "bundled":
        return sentences.load_bundled()
    if name == "goemotions":
        return sentences.load_goemotions(places, int(config.data["example_count"]))
    text, label, task = (str(config.data[key]) for key in ("text", "label", "task"))
    return load_texts(Path(name), text, label, task, float(config.data["hold_out"]), config.seed)


def _small_config(config: RunConfig, vocabulary_size: int) -> dict[str, Any]:
    hidden = int(config.model["hidden_size"])
    return {
        "model_type": "bert",
        "vocab_size": vocabulary_size,
        "hidden_size": hidden,
        "num_hidden_layers": int(config.model["layers"]),
        "num_attention_heads": max(1, hidden // 32),
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": _MAX_POSITIONS,
        "pad_token_id": 0,
    }


def _checkpoint_files(weights: str, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Describes the network in the file that the run is opened with; BERT has one of its own."""
    if checkpoint.config["model_type"] != "bert":
        return {_ENCODER_FILE: open_text_encoder(weights, checkpoint).to_bytes()}
    with told(weights, "config.json"):
        from transformers import BertConfig

        read: Any = BertConfig.from_pretrained
        return {_BERT_FILE: _json(read(str(checkpoint.model_folder)).to_diff_dict())}


def build_model(config: RunConfig, form: Form) -> nn.Module:
    """Builds the network that the run's bert_config.json or encoder.json describes."""
    label_count, is_frozen = len(form.class_names), bool(config.model["frozen"])
    if _ENCODER_FILE in form.files:
        with told(str(config.model["weights"]), "network"):
            return TextEncoder.from_bytes(form.files[_ENCODER_FILE]).build(label_count, is_frozen)
    from transformers import BertConfig

    network = BertConfig.from_dict(json.loads(form.files[_BERT_FILE]))
    return BertMultiLabel(network, label_count, is_frozen)


def start(config: RunConfig, model: nn.Module, data: DataSet) -> None:
    """Puts the checkpoint's weights into the encoder, where there is one."""
    weights = str(config.model["weights"])
    if not weights:
        return
    checkpoint = open_weights(weights)
    if isinstance(model, TextClassifier):
        load_text_encoder(weights, checkpoint, model, TextEncoder.from_bytes(data.files[_ENCODER_FILE]).heads)
        return
    assert isinstance(model, BertMultiLabel)
    with told(weights, "weights"):
        from transformers import BertModel

        read: Any = BertModel.from_pretrained
        pretrained, found = read(
            str(checkpoint.model_folder), output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    _check_complete(weights, sorted(found["missing_keys"]))
    model.encoder.load_state_dict(pretrained.state_dict())


def _check_complete(weights: str, missing: Sequence[str]) -> None:
    lacking = [name for name in missing if not name.startswith("pooler.")]
    if lacking:
        raise UsageError(f"model.weights {weights}: expected every weight of its BERT, {lacking[0]} is not there")
    if missing:
        print(f"model.weights {weights}: has no pooler, which starts from random weights", file=sys.stderr, flush=True)


def rate_factors(config: RunConfig, heads: tuple[str, ...] = ("linear.",)) -> dict[str, float]:
    """Gives the multiple of the learning rate that the layer over the pooler, or another encoder's head, learns with.

    Raises:
        UsageError: it is not above 0.
    """
    factor = float(config.model["head_lr_factor"])
    if not 0 < factor < float("inf"):
        raise UsageError(f"setting 'model.head_lr_factor': expected a number above 0, got {factor:g}")
    return dict.fromkeys(heads, factor)


def for_form(form: Form) -> Recipe:
    """Fits the recipe to the tokenizer, the network, the number of labels, and whether a text has one or any."""
    recipe = replace(RECIPE, build_model=partial(build_model, form=form), load_data=partial(load_data, form=form))
    if _ENCODER_FILE in form.files:
        heads = TextEncoder.from_bytes(form.files[_ENCODER_FILE]).heads
        recipe = replace(recipe, rate_factors=partial(rate_factors, heads=tuple(f"network.{head}." for head in heads)))
    if form.target_shape:
        return replace(recipe, objective=MultiLabel(len(form.class_names)), served=Probabilities)
    return replace(recipe, objective=Classification(), output_name="logits")


def _unformed(_config: RunConfig) -> nn.Module:
    raise AssertionError("bert-multilabel is built once the form of its data is known")


RECIPE = Recipe(
    name="bert-multilabel",
    defaults={
        # One thread: so small a network's steps are too small to share.
        "threads": 1,
        "optimizer": "adamw",
        "lr": 5e-4,
        "batch_size": 32,
        "epochs": 8,
        # Batches come in several lengths, each of which would be compiled anew.
        "compile": "off",
        "data.max_length": 50,
        "data.example_count": 0,
        "data.hold_out": 0.2,
        "data.text": "text",
        "data.label": "label",
        "data.task": "auto",
        "model.weights": "",
        "model.frozen": False,
        # Beside a pretrained encoder the new layer has the longest way to go, and 10 to 20 shortens it.
        "model.head_lr_factor": 1.0,
        "model.layers": 2,
        "model.hidden_size": 128,
        "model.vocabulary_size": 8000,
    },
    presets={"bundled": {"lr": 1e-3, "batch_size": 16, "epochs": 40}, "pretrained": _WITH_WEIGHTS},
    preset_for=preset_for,
    choose_data=sentences.choose,
    data_names=sentences.NAMES,
    load_data=load_data,
    build_model=_unformed,
    objective=MultiLabel(len(sentences.EMOTIONS)),
    inputs=(
        ServedInput("input_ids", torch.int64, ("batch", "sequence")),
        ServedInput("attention_mask", torch.int64, ("batch", "sequence")),
    ),
    output_name="probabilities",
    rate_factors=rate_factors,
    for_form=for_form,
    start=start,
    own_data=("text", "table"),
)
