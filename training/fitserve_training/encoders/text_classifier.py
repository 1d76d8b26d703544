"""A pretrained encoder of texts of any architecture with a new head: DistilBERT, RoBERTa, ELECTRA, MPNet, ...

Shapes: B texts, S tokens, K labels.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fitserve_contract.checkpoints import Checkpoint
from fitserve_training.data.pretrained import told
from fitserve_training.encoders.networks import (
    TEXTS,
    build_network,
    check_kind,
    find_heads,
    load_encoder,
    plain_config,
    shapes_alone,
)
from fitserve_training.encoders.picture_classifier import HeadedEncoder
from fitserve_training.errors import UsageError

_PROBE = (2, 6)
_PADDED_BY = 5
_TOLERANCE = 1e-3
"""Of logits, relative to the largest: padding moves them by rounding alone."""


class TextClassifier(HeadedEncoder):
    """Maps token ids and their mask to logits."""

    def forward(self, input_ids_BS: Tensor, attention_mask_BS: Tensor) -> Tensor:
        """Maps token ids and their mask (1 for tokens, 0 for padding), int64 (B, S), to logits (B, K)."""
        logits_BK: Tensor = self.network(input_ids=input_ids_BS, attention_mask=attention_mask_BS).logits
        return logits_BK


@dataclass(frozen=True)
class TextEncoder:
    """A pretrained encoder of texts before its weights are read.

    Args:
        config: As `plain_config` returns it.
        heads: Parts of its classifier that are new.
    """

    config: Mapping[str, Any]
    heads: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Returns what `from_bytes` reads."""
        return (json.dumps(vars(self), indent=2, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> TextEncoder:
        """Reads what `to_bytes` wrote."""
        found = json.loads(content)
        return TextEncoder(found["config"], tuple(found["heads"]))

    def build(self, label_count: int, is_frozen: bool) -> TextClassifier:
        """Builds the classifier with random weights."""
        return TextClassifier(build_network(self.config, TEXTS, label_count), self.heads, is_frozen)


def open_text_encoder(weights: str, checkpoint: Checkpoint) -> TextEncoder:
    """Opens a checkpoint as far as its config.json.

    Raises:
        UsageError: it is no encoder of texts, or one that has no use for a mask.
    """
    check_kind(weights, checkpoint.config, TEXTS)
    config = plain_config(checkpoint)
    _check_encoder(weights, config)
    return TextEncoder(config, find_heads(weights, config, TEXTS))


def _check_encoder(weights: str, config: Mapping[str, Any]) -> None:
    """Refuses decoders, which read a text from its end, and models whose answers would depend on padding."""
    with told(weights, "network"), shapes_alone():
        from transformers.models.auto import modeling_auto

        network = build_network(config, TEXTS, 2)
    is_masked = config["model_type"] in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_single = not getattr(network.config, "is_encoder_decoder", False)
    if not is_masked or not is_single or "attention_mask" not in inspect.signature(network.forward).parameters:
        raise UsageError(
            f"model.weights {weights}: expected an encoder of texts with an attention mask, such as BERT, DistilBERT "
            f"or RoBERTa, got model type {config['model_type']}"
        )


def load_text_encoder(weights: str, checkpoint: Checkpoint, model: TextClassifier, heads: tuple[str, ...]) -> None:
    """Puts the checkpoint's weights into the encoder, and checks that padding changes no answer.

    Raises:
        UsageError: the weights cannot be used.
    """
    load_encoder(weights, checkpoint, model.network, heads, TEXTS)
    _check_padding(weights, model)


def _check_padding(weights: str, model: TextClassifier) -> None:
    was_training, device = model.training, next(model.parameters()).device
    config: Any = model.network.config
    pad, count = config.pad_token_id or 0, int(config.vocab_size)
    ids = torch.arange(_PROBE[0] * _PROBE[1], device=device).reshape(_PROBE).add(pad + 1) % count
    padded = nn.functional.pad(ids, (0, _PADDED_BY), value=pad)
    mask = nn.functional.pad(torch.ones_like(ids), (0, _PADDED_BY))
    model.eval()
    with torch.inference_mode():
        alone, beside = model(ids, torch.ones_like(ids)), model(padded, mask)
    model.train(was_training)
    if not torch.allclose(alone, beside, rtol=0, atol=_TOLERANCE * max(1.0, float(alone.abs().max()))):
        raise UsageError(
            f"model.weights {weights}: expected an encoder whose answers do not depend on padding, got logits that "
            f"move by {float((alone - beside).abs().max()):.3g}; texts of a batch could not be served together"
        )
