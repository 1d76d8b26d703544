"""Examples as numpy arrays: an .npz file with one array of inputs and `labels`. Shapes: N examples, C labels."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitserve_training.data.dataset import DataSet, Split
from fitserve_training.data.hold_out import hold_out, hold_out_rows
from fitserve_training.data.own.array_rows import array_rows, check_finite_rows, header_of
from fitserve_training.data.own.kinds import check_present
from fitserve_training.data.own.targets import array_targets
from fitserve_training.data.store.array_file import Array
from fitserve_training.data.store.rows import is_on_disk
from fitserve_training.data.store.tensors import tensor_of
from fitserve_training.errors import UsageError

LABELS = "labels"
_FLOAT_BYTES = 4
_PICTURE_AXES = 4
_LOOKED_AT = 1000
_NO_TARGETS = torch.empty(0)
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
    names = _names(path)
    array_name = next((name for name in _INPUT_NAMES if set(names) == {name, LABELS}), "")
    if not array_name:
        raise UsageError(
            f"data {path}: expected arrays '{input_name}' and '{LABELS}', got {', '.join(names) or 'none'}"
        )
    labels, kept = _read(path, LABELS), _kept(path, array_name)
    _check_finite(path, LABELS, labels)
    if (count := len(kept.inputs[0])) != len(labels):
        raise UsageError(f"data {path}: expected as many labels as examples, got {len(labels)} and {count}")
    if count < 2:
        raise UsageError(f"data {path}: expected at least two examples, got {count}")
    if not kept.input_shapes[0] or 0 in kept.input_shapes[0]:
        raise UsageError(
            f"data {path}: array '{array_name}': expected features (N, D) or pictures (N, C, H, W), got "
            f"{tuple(kept.inputs[0].shape)}; one feature is (N, 1)"
        )
    if labels.ndim > 2:
        raise UsageError(f"data {path}: array '{LABELS}': expected (N,) or (N, D), got {labels.shape}")
    targets = array_targets(path, labels, task)
    if kept.dtypes:
        every = replace(kept, targets=targets.values)
        train, held_out = map(every.subset, hold_out_rows(targets.values, held_out_share, seed))
    else:
        train, held_out = hold_out(kept.inputs, targets.values, held_out_share, seed)
    counts = f"{len(train):,} to train on, {len(held_out):,} held out by seed {seed}"
    source = f"{len(labels):,} examples of {path} ({counts})"
    renamed = "" if array_name == input_name else f"; array '{array_name}' becomes the model's input '{input_name}'"
    return DataSet(
        str(path), source, train, held_out, targets.names, note=targets.note + renamed + _range_note(kept, input_name)
    )


def _range_note(kept: Split, input_name: str) -> str:
    """Warns of pictures in another unit than that of the pictures that `fitserve-client` sends."""
    largest = float(kept.inputs[0][:_LOOKED_AT].max())
    if input_name != "image" or kept.inputs[0].ndim != _PICTURE_AXES or largest <= 1:
        return ""
    return (
        f"; warning: array values reach {largest:g}, and fitserve-client sends the values of a picture file as 0..1, "
        "for which the model is not trained; divide by 255 to predict picture files"
    )


def _kept(path: Path, name: str) -> Split:
    """Reads the inputs, without their targets: few as float32 in memory, many as they are kept in a mapped file."""
    with _told(path):
        header = header_of(path, name)
    if header is not None:
        shape, dtype = header
        _check_numbers(path, name, shape, dtype)
        if is_on_disk(prod(shape) * _FLOAT_BYTES, path.stat().st_size):
            with _told(path):
                rows = array_rows(path, name, shape, dtype)
            return Split((tensor_of(rows),), _NO_TARGETS, dtypes=(torch.float32,))
    inputs = _read(path, name)
    _check_finite(path, name, inputs)
    return Split((torch.from_numpy(inputs.astype(np.float32)),), _NO_TARGETS)


def _names(path: Path) -> list[str]:
    with _told(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return list(archive.files)


def _read(path: Path, name: str) -> Array:
    with _told(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        found: Array = archive[name]
        return found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"data {path}: expected an .npz file of numpy, got {error}") from None


def _check_finite(path: Path, name: str, array: Array) -> None:
    _check_numbers(path, name, array.shape, array.dtype)
    check_finite_rows(path, name, array)


def _check_numbers(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf" or not shape:
        raise UsageError(f"data {path}: array '{name}': expected numbers (N, …), got {dtype} {shape}")
