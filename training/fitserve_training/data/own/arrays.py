"""Examples as numpy arrays: an .npz file with one array of inputs and `labels`. Shapes: N examples, C labels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitserve_training.data.dataset import DataSet
from fitserve_training.data.hold_out import hold_out
from fitserve_training.data.own.kinds import check_classes, check_present
from fitserve_training.errors import UsageError

LABELS = "labels"


def load_arrays(path: Path, input_name: str, held_out_share: float, seed: int) -> DataSet:
    """Reads `input_name`, real numbers (N, …), and `labels`, as `fitserve-client evaluate` takes them too.

    Labels decide the task: whole numbers (N,) are classes, bool (N, C) any of C, real numbers (N,) or (N, D) values.

    Raises:
        UsageError: an array is missing, of another shape, or holds what is no finite number; the message names it.
    """
    check_present(path)
    found = _read(path)
    if set(found) != {input_name, LABELS}:
        raise UsageError(
            f"data {path}: expected arrays '{input_name}' and '{LABELS}', got {', '.join(found) or 'none'}"
        )
    inputs, labels = found[input_name], found[LABELS]
    if len(inputs) != len(labels) or len(labels) < 2:
        raise UsageError(f"data {path}: expected as many labels as examples, got {len(labels)} and {len(inputs)}")
    _check_finite(path, input_name, inputs)
    targets, names = _targets(path, labels)
    train, held_out = hold_out((torch.from_numpy(inputs.astype(np.float32)),), targets, held_out_share, seed)
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    return DataSet(str(path), f"{len(labels):,} examples of {path} ({counts})", train, held_out, names)


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


def _targets(path: Path, labels: np.ndarray[Any, Any]) -> tuple[Tensor, tuple[str, ...]]:
    _check_finite(path, LABELS, labels)
    if labels.dtype.kind == "f" and labels.ndim in (1, 2):
        return torch.from_numpy(labels.astype(np.float32).reshape(len(labels), -1)), ()
    if labels.dtype.kind == "b" and labels.ndim == 2:
        return torch.from_numpy(labels), tuple(str(index) for index in range(labels.shape[1]))
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
        raise UsageError(
            f"data {path}: array '{LABELS}': expected whole numbers >= 0 (N,), bool (N, C) or real numbers (N,), got "
            f"{labels.dtype} {labels.shape}"
        )
    names = tuple(str(index) for index in range(int(labels.max()) + 1))
    check_classes(path, {str(value): int((labels == value).sum()) for value in np.unique(labels)})
    return torch.from_numpy(labels.astype(np.int64)), names
