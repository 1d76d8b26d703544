"""The caller's record of a training, as JSON can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch

from fitserve_exporters.errors import ExportError

_MAX_ELEMENTS: Final = 10_000
"""Of one tensor: a manifest holds figures and curves, not data."""

_MAX_DEPTH: Final = 32
_LARGEST: Final = 2**63 - 1
"""Readers of JSON in other languages hold integers in 64 bits."""


def json_record(record: Any) -> dict[str, Any]:
    """Converts tensors and numpy values to numbers and lists, and tuples to lists.

    Raises:
        ExportError: names the first key that JSON cannot hold, NaN and infinities among them.
    """
    if not isinstance(record, Mapping):
        raise ExportError(f"training: expected a mapping of names to figures, got {type(record).__name__}")
    return _object("training", record, ())


def _converted(where: str, value: Any, above: tuple[int, ...]) -> Any:
    if id(value) in above:
        raise ExportError(f"{where}: expected a value that JSON can hold, got one that contains itself")
    if len(above) >= _MAX_DEPTH:
        raise ExportError(f"{where[:80]}…: expected at most {_MAX_DEPTH} levels, got more; flatten it, or leave it out")
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _converted(where, _plain(where, value), above)
    if isinstance(value, Mapping):
        return _object(where, value, (*above, id(value)))
    if isinstance(value, list | tuple):
        return [_converted(f"{where}[{i}]", part, (*above, id(value))) for i, part in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ExportError(f"{where}: expected a finite number, got {value}; write it as text, or leave it out")
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise ExportError(f"{where}: expected an integer of 64 bits, got a larger one; write it as text or float")
    if isinstance(value, str):
        return _text(where, value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ExportError(
        f"{where}: expected a number, text, list or mapping, got {type(value).__name__}; convert it, or leave it out"
    )


def _object(where: str, value: Mapping[Any, Any], above: tuple[int, ...]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise ExportError(f"{where}: expected text as keys, got {key!r}; write str(key)")
    return {_text(where, key): _converted(f"{where}['{key}']", part, above) for key, part in value.items()}


def _text(where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ExportError(
            f"{where}: expected text that UTF-8 can hold, got {text[:40]!r}; decode bytes with errors='replace'"
        ) from None
    return text


def _plain(where: str, value: Any) -> Any:
    """Turns a tensor, an array or a numpy scalar into numbers or nested lists of them."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type == "meta":
            raise ExportError(f"{where}: expected real numbers, got a tensor of {value.dtype}; leave it out")
        size = value.numel()
    else:
        size = value.size
    if size > _MAX_ELEMENTS:
        raise ExportError(f"{where}: expected at most {_MAX_ELEMENTS} numbers, got {size}; save data elsewhere")
    plain = value.tolist()
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "biufU":
        raise ExportError(f"{where}: expected numbers or text, got {value.dtype}; convert it, or leave it out")
    return plain
