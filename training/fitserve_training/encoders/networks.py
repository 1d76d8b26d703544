"""transformers' own classifiers, built from a checkpoint's configuration and given its weights, with a new head.

Shapes: B examples, K outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fitserve_contract.checkpoints import Checkpoint
from fitserve_training.data.pretrained import told
from fitserve_training.errors import UsageError

PICTURES, TEXTS = "AutoModelForImageClassification", "AutoModelForSequenceClassification"
"""Classes of transformers that make a classifier of any architecture that has one."""

_KINDS = {PICTURES: "pictures", TEXTS: "texts"}
_OTHER_MAKER = {PICTURES: TEXTS, TEXTS: PICTURES}
_ODD_COUNT = 7919
"""Outputs that no layer of a network has by chance: those that have are the head."""

_NOT_KEPT = ("_name_or_path", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type")
"""Keys of a configuration that are of the checkpoint's own task, or of where it lay."""


def plain_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what a checkpoint's config.json says of its network; weights are float32 and labels those of the data."""
    return {key: value for key, value in checkpoint.config.items() if key not in _NOT_KEPT}


def check_kind(weights: str, config: Mapping[str, Any], maker: str) -> None:
    """Checks that transformers has a classifier for this architecture and kind of data.

    Args:
        weights: The setting `model.weights`.
        config: Of the checkpoint.
        maker: `PICTURES` or `TEXTS`.

    Raises:
        UsageError: it has none, or one for another kind of data.
    """
    kind = str(config["model_type"])
    if kind in _names(maker):
        return
    found = f"'{kind}'"
    if kind in _names(_OTHER_MAKER[maker]):
        found = f"'{kind}', which is for {_KINDS[_OTHER_MAKER[maker]]}"
    raise UsageError(
        f"model.weights {weights}: expected a checkpoint of an encoder of {_KINDS[maker]} that transformers can make "
        f"classify, got model_type {found}"
    )


def _names(maker: str) -> Mapping[str, Any]:
    with told("", "architectures"):
        from transformers.models.auto import modeling_auto

    name = {PICTURES: "IMAGE", TEXTS: "SEQUENCE"}[maker]
    names: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{name}_CLASSIFICATION_MAPPING_NAMES")
    return names


def build_network(config: Mapping[str, Any], maker: str, output_count: int) -> nn.Module:
    """Builds a classifier with K outputs and random weights, float32.

    Args:
        config: As `plain_config` returns it.
        maker: `PICTURES` or `TEXTS`.
        output_count: K.
    """
    import transformers

    document = {**config, "architectures": config.get("architectures") or []}
    made: Any = transformers.AutoConfig.for_model(**document)
    made.num_labels = output_count
    if hasattr(made, "use_cache"):
        made.use_cache = False
    network: nn.Module = getattr(transformers, maker).from_config(made)
    return network.float()


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Builds and runs networks without values, in no time and no memory."""
    with torch.device("meta"), torch.no_grad():
        yield


def find_heads(weights: str, config: Mapping[str, Any], maker: str) -> tuple[str, ...]:
    """Finds the parts of a classifier that are new for every task: those above the encoder that learn anew.

    Args:
        weights: The setting `model.weights`.
        config: As `plain_config` returns it.
        maker: `PICTURES` or `TEXTS`.

    Raises:
        UsageError: transformers cannot build it here, or its head is no part of its own.
    """
    with told(weights, "network"), shapes_alone():
        network = build_network(config, maker, _ODD_COUNT)
    body = getattr(network, "base_model_prefix", "")
    children = dict(network.named_children())
    heads = [
        name
        for name, child in children.items()
        if any(_ODD_COUNT in parameter.shape for parameter in child.parameters())
        or (body in children and name != body and _is_plain(child))
    ]
    if not heads or body in heads:
        raise UsageError(
            f"model.weights {weights}: expected an encoder with a head above it, got {type(network).__name__}, which "
            "has none"
        )
    return tuple(heads)


def _is_plain(module: nn.Module) -> bool:
    """Says whether a module learns, and nothing but its parameters."""
    return any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def load_encoder(weights: str, checkpoint: Checkpoint, network: nn.Module, heads: Sequence[str], maker: str) -> None:
    """Copies a checkpoint's weights into a network; the last layer stays as it is where it is of other classes.

    Args:
        weights: The setting `model.weights`.
        checkpoint: Checked.
        network: Of `build_network`.
        heads: Of `find_heads`.
        maker: `PICTURES` or `TEXTS`.

    Raises:
        UsageError: the weights cannot be read, or lack some of the encoder's.
    """
    with told(weights, "weights"):
        import transformers

        read: Any = getattr(transformers, maker).from_pretrained
        pretrained, found = read(
            str(checkpoint.model_folder),
            config=network.config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
    new = sorted({str(key) for key in found["missing_keys"]} | {str(key[0]) for key in found["mismatched_keys"]})
    _check_complete(weights, [name for name in new if name.partition(".")[0] not in heads])
    state = {name: value for name, value in pretrained.state_dict().items() if name not in new}
    network.load_state_dict(state, strict=False)


def _check_complete(weights: str, lacking: Sequence[str]) -> None:
    needed = [name for name in lacking if ".pooler." not in name]
    if needed:
        raise UsageError(f"model.weights {weights}: expected every weight of its encoder, {needed[0]} is not there")
    if lacking:
        print(f"model.weights {weights}: has no pooler, which starts from random weights", file=sys.stderr, flush=True)
