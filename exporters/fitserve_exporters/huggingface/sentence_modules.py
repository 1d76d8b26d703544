"""What sentence-transformers puts behind a transformer: pooling, dense layers, normalization, as its files say.

Shapes: B texts, T tokens, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fitserve_contract.checkpoints import WEIGHTS_FILE, check_weights, read_json
from fitserve_exporters.errors import ExportError

MODULES_FILE: Final = "modules.json"

_ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
}


class Pooling(nn.Module):
    """Pools the tokens of each text; several modes stand one after the other in the channels.

    Args:
        modes: Some of "cls", "mean", "max" and "mean_sqrt_len_tokens".
    """

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Takes (B, T, C) and a mask (B, T) of 0 and 1; returns (B, C times the number of modes)."""
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.cat([self._pooled(mode, hidden, mask) for mode in self.modes], dim=1)

    def _pooled(self, mode: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if mode == "cls":
            return hidden[:, 0]
        if mode == "max":
            return torch.where(mask > 0, hidden, torch.full_like(hidden, -1e9)).max(dim=1).values
        count = mask.sum(dim=1).clamp(min=1e-9)
        return (hidden * mask).sum(dim=1) / (count if mode == "mean" else count.sqrt())


class Normalize(nn.Module):
    """Scales (B, C) to unit length."""

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Takes and returns (B, C)."""
        return nn.functional.normalize(embedding, dim=1)


class SentenceEmbedding(nn.Module):
    """Turns the hidden states of a transformer into embeddings.

    Args:
        pooling: First.
        rest: Then these, in order.
    """

    def __init__(self, pooling: Pooling, rest: list[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.rest = nn.Sequential(*rest)

    def forward(self, answer: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes what the transformer returned and its inputs; returns `sentence_embedding` (B, C)."""
        pooled = self.pooling(answer.last_hidden_state, inputs["attention_mask"])
        return {"sentence_embedding": self.rest(pooled)}


def read_sentence_modules(folder: Path) -> tuple[Path, SentenceEmbedding] | None:
    """Reads modules.json; None where there is none.

    Returns:
        The directory of the transformer, and what stands behind it.

    Raises:
        ExportError: a module of another kind or order than Transformer, Pooling, then Dense and Normalize.
    """
    if not (folder / MODULES_FILE).is_file():
        return None
    kinds = [_entry(folder, entry) for entry in _entries(folder)]
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"]:
        raise ExportError(
            f"checkpoint '{folder}': {MODULES_FILE}: expected a Transformer and a Pooling first, got "
            f"{', '.join(names) or 'nothing'}"
        )
    pooling = Pooling(_modes(kinds[1][1] / "config.json"))
    return kinds[0][1], SentenceEmbedding(pooling, [_made(kind, place) for kind, place in kinds[2:]])


def _entries(folder: Path) -> list[Any]:
    try:
        entries = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"'{folder / MODULES_FILE}': expected JSON, got {str(error)[:120]}") from error
    if not isinstance(entries, list):
        raise ExportError(f"'{folder / MODULES_FILE}': expected a list of modules, got {type(entries).__name__}")
    return entries


def _entry(folder: Path, entry: Any) -> tuple[str, Path]:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise ExportError(f"'{folder / MODULES_FILE}': expected a type and a path for each module, got {entry!r:.80}")
    kind, path = entry["type"], str(entry.get("path", ""))
    if not kind.startswith("sentence_transformers."):
        raise ExportError(
            f"checkpoint '{folder}': {MODULES_FILE}: expected modules of sentence-transformers, got code of its own "
            f"('{kind[:80]}'), which is never run"
        )
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ExportError(f"checkpoint '{folder}': {MODULES_FILE}: expected paths inside of it, got '{path[:80]}'")
    return kind.rsplit(".", 1)[-1], folder / path


def _modes(path: Path) -> tuple[str, ...]:
    """Reads the modes of a pooling: newer files name them, older ones have a flag for each."""
    config = read_json(path)
    named = config.get("pooling_mode")
    chosen = [named] if isinstance(named, str) else list(named or [])
    chosen += [name for flag, name in _FLAGS.items() if config.get(flag)]
    unknown = [str(name) for name in chosen if name not in _FLAGS.values()]
    unknown += [flag for flag in config if flag.startswith("pooling_mode_") and flag not in _FLAGS and config[flag]]
    if unknown or not chosen:
        raise ExportError(
            f"'{path}': expected a pooling of {', '.join(_FLAGS.values())}, got {', '.join(unknown) or 'none'}"
        )
    return tuple(dict.fromkeys(name for name in _FLAGS.values() if name in chosen))


_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
"""In the order in which sentence-transformers puts their results."""


def _made(kind: str, place: Path) -> nn.Module:
    if kind == "Normalize":
        return Normalize()
    if kind == "Dropout":
        return nn.Identity()
    if kind == "Dense":
        return _dense(place)
    raise ExportError(f"'{place}': expected Dense or Normalize behind the pooling, got {kind}")


def _dense(place: Path) -> nn.Module:
    config = read_json(place / "config.json")
    check_weights(place)
    name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise ExportError(
            f"'{place}': activation_function: expected one of {', '.join(_ACTIVATIONS)}, got '{name[:40]}'"
        )
    try:
        weights = load_file(place / WEIGHTS_FILE)
        layer = nn.Linear(int(config["in_features"]), int(config["out_features"]), bias=bool(config.get("bias", True)))
        layer.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"'{place}': expected a dense layer, got {str(error)[:200]}") from error
    return nn.Sequential(layer, _ACTIVATIONS[name]())
