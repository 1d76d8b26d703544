"""Resumable training state in one safetensors file: tensors as tensors, everything else as JSON in its header.

One file, written aside and renamed, so a checkpoint is there whole or not at all. No pickle: reading one runs no code.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fitserve_training.errors import UsageError

_FORMAT = "fitserve-checkpoint-1"
_MODEL = "model."


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Writes the state after an epoch.

    Args:
        path: Appears by a rename when it is complete and flushed.
        model: Its state dict is saved under `model.`.
        optimizer: Its state dict is saved, tensors under `optimizer.`.
        progress: JSON-able; at least the last epoch.
    """
    tensors = {f"{_MODEL}{name}": _plain(value) for name, value in model.state_dict().items()}
    state = _strip_tensors(optimizer.state_dict(), "optimizer", tensors)
    _save(path, tensors, {"format": _FORMAT, "state": json.dumps({"optimizer": state, "progress": progress})})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts the saved state back into `model` and `optimizer` and gives `progress`.

    Raises:
        UsageError: the file is unreadable, not a checkpoint, or of another model.
    """
    tensors, metadata = _read(path)
    saved = _state(path, metadata)
    _load_into(model, {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}, path)
    optimizer.load_state_dict(_restore_tensors(saved["optimizer"], tensors))
    _lay_out_like_parameters(optimizer)
    progress: dict[str, Any] = saved["progress"]
    return progress


def read_progress(path: Path) -> dict[str, Any]:
    """Reads `progress` alone, without the tensors.

    Raises:
        UsageError: the file is unreadable or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"checkpoint {path}: cannot be read: {error}") from None
    progress: dict[str, Any] = _state(path, metadata)["progress"]
    return progress


def _state(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != _FORMAT:
        raise UsageError(f"checkpoint {path}: expected format {_FORMAT}, got {metadata.get('format')}")
    state: dict[str, Any] = json.loads(metadata["state"])
    return state


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Gives state the strides of its parameter, as fused updates need it, and a rate that is a tensor its device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(group["params"][0].device)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes the model's state dict alone, under its own names."""
    _save(path, {name: _plain(value) for name, value in model.state_dict().items()}, {"format": "pt"})


def load_weights(path: Path, model: nn.Module) -> None:
    """Reads what `save_weights` wrote into `model`.

    Raises:
        UsageError: the file is unreadable or of another model.
    """
    _load_into(model, _read(path)[0], path)


def _load_into(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UsageError(
                f"weights {path}: of another model: {name!r} expected shape {expected.get(name, 'none')}, "
                f"got {found.get(name, 'none')}"
            )
    model.load_state_dict(tensors)


def _plain(tensor: Tensor) -> Tensor:
    """Gives a copy in main memory, row-major whatever it was."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, part, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"weights {path}: cannot be read: {error}") from None


def _strip_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replaces every tensor inside by its key in `tensors`; keeps what JSON would lose (tuples, keys not text)."""
    if isinstance(value, Tensor):
        tensors[name] = _plain(value)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"map": [[key, _strip_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_strip_tensors(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    return value


def _restore_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: _restore_tensors(item, tensors) for key, item in content}
    items = [_restore_tensors(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
