"""Examples as numpy arrays: an .npz file with one array of inputs and `labels`. Shapes: N examples, C labels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitserve_training.data.dataset import DataSet
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import check_present
from fitserve_training.data.own.targets import array_targets
from fitserve_training.errors import UsageError

LABELS = "labels"
_INPUT_NAMES = ("x", "image")
"""What recipes call their input; an array of either name is taken by all of them."""


def load_arrays(path: Path, input_name: str, task: str, held_out_share: float, seed: int) -> DataSet:
    """Reads `input_name`, real numbers (N, …), and `labels`, as `fitserve-client evaluate` takes them too.

    Args:
        path: The .npz file.
        input_name: Name of the served input, and of the array of inputs; the file may say `x` or `image` for it.
        task: As `array_targets` takes it: `auto`, `classification`, `regression` or `multi-label`.
        held_out_share: Share of the examples held out.
        seed: Decides which.

    Raises:
        UsageError: an array is missing, of another shape, or holds what is no finite number; the message names it.
    """
    check_present(path)
    found = _read(path)
    array_name = next((name for name in _INPUT_NAMES if set(found) == {name, LABELS}), "")
    if not array_name:
        raise UsageError(
            f"data {path}: expected arrays '{input_name}' and '{LABELS}', got {', '.join(found) or 'none'}"
        )
    inputs, labels = found[array_name], found[LABELS]
    _check_finite(path, array_name, inputs)
    _check_finite(path, LABELS, labels)
    if len(inputs) != len(labels) or len(labels) < 2:
        raise UsageError(f"data {path}: expected as many labels as examples, got {len(labels)} and {len(inputs)}")
    if labels.ndim > 2:
        raise UsageError(f"data {path}: array '{LABELS}': expected (N,) or (N, D), got {labels.shape}")
    targets = array_targets(path, labels, task)
    values = (torch.from_numpy(inputs.astype(np.float32)),)
    train, held_out = hold_out(values, targets.values, held_out_share, seed)
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    source = f"{len(labels):,} examples of {path} ({counts})"
    renamed = "" if array_name == input_name else f"; array '{array_name}' becomes the model's input '{input_name}'"
    return DataSet(str(path), source, train, held_out, targets.names, note=targets.note + renamed)


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"data {path}: expected an .npz file of numpy, got {error}") from None


def _check_finite(path: Path, name: str, array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind not in "biuf" or array.ndim < 1:
        raise UsageError(f"data {path}: array '{name}': expected numbers (N, …), got {array.dtype} {array.shape}")
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1) if array.size else np.zeros(0, bool)
    if bad.any():
        raise UsageError(
            f"data {path}: array '{name}' row {int(bad.argmax())}: expected finite numbers, got NaN or infinity"
        )
