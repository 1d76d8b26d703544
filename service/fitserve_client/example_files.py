"""Examples from files: `.npy` (one array), `.npz` (one array per input name, and `labels`), `.png` (one picture)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fitserve_client.errors import FileError
from fitserve_client.messages import Inputs
from fitserve_client.models import VersionDetails
from fitserve_client.pictures import BICUBIC, read_picture
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.tasks import TaskKind
from fitserve_contract.tensor_bytes import Array

LABELS: Final = "labels"
_INPUT_NAMES: Final = ("x", "image")
"""What training takes for its one input, by either name."""

PICTURE: Final = ".png"
SUFFIXES: Final = (".npy", ".npz", PICTURE)
TABLE: Final = ".csv"
"""Read by `table_examples`."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What a file held.

    Args:
        inputs: As `Client.predict` takes them.
        labels: One label per example; None where the file has none.
        notes: Sentences on what was done to the file's content.
        label_column: Of a table: where its labels are, or would be.
    """

    inputs: Inputs
    labels: Array | None = None
    notes: tuple[str, ...] = ()
    label_column: str = ""


def read_examples(
    path: Path, details: VersionDetails, *, is_inverted: bool = False, resample: int = BICUBIC
) -> Examples:
    """Reads the examples of a file for a model.

    Args:
        path: A .npy, .npz or .png file.
        details: The version that is to take them.
        is_inverted: Exchange light and dark in a picture.
        resample: Pillow's number of the filter that resizes a picture.

    Raises:
        FileError: the file is not there, is no such file, or does not suit the model.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FileError(f"file '{path}': expected one of {', '.join((*SUFFIXES, TABLE))}, got '{path.suffix}'")
    if is_inverted and suffix != PICTURE:
        raise FileError(f"file '{path}': expected a .png file for --invert, got '{path.suffix}'")
    if suffix == PICTURE:
        picture, notes = read_picture(path, _only_input(details), is_inverted=is_inverted, resample=resample)
        return Examples(picture, notes=tuple(f"file '{path}': {note}" for note in notes))
    if suffix == ".npy":
        return Examples(_arrays(path, ".npy")[""])
    return _named(_arrays(path, ".npz"), details)


def labels_of(examples: Examples, path: Path) -> Array:
    """Gives the labels.

    Raises:
        FileError: the file has none.
    """
    if examples.labels is None:
        if examples.label_column:
            raise FileError(f"file '{path}': expected labels in a column {examples.label_column!r}, found none")
        raise FileError(f"file '{path}': expected a .npz with one array per input and '{LABELS}', found no '{LABELS}'")
    return examples.labels


def _named(arrays: dict[str, Array], details: VersionDetails) -> Examples:
    """Arrays named `labels` are labels, unless the model has an input of that name; `x` and `image` are each other."""
    names = [spec.name for spec in details.inputs]
    labels = None if LABELS in names else arrays.pop(LABELS, None)
    if len(names) == 1 and len(arrays) == 1 and {*names, *arrays} == set(_INPUT_NAMES):
        arrays = dict(zip(names, arrays.values(), strict=True))
    return Examples(arrays, labels if labels is None else _scored(labels, details))


def _scored(labels: Array, details: VersionDetails) -> Array:
    """Brings labels that training takes to the form that is scored, where nothing is lost: one-hot rows, columns (N, 1)
    and whole floats to classes, 0 and 1 to booleans, values (N,) to (N, 1)."""
    task = details.task
    if task is None or labels.dtype.kind not in "biuf":
        return labels
    if task.kind is TaskKind.REGRESSION:
        output = details.output(task.output)
        is_column = output is not None and output.shape is not None and tuple(output.shape[1:]) == (1,)
        labels = labels[:, None] if labels.ndim == 1 and is_column else labels
        return labels.astype(np.float32) if labels.dtype.kind in "biu" else labels
    is_zero_or_one = bool(((labels == 0) | (labels == 1)).all())
    if task.kind is TaskKind.MULTI_LABEL:
        return labels.astype(np.bool_) if is_zero_or_one else labels
    if task.kind is not TaskKind.CLASSIFICATION:
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] == len(task.class_names) and is_zero_or_one:
        labels = labels.argmax(axis=1) if bool((labels.sum(axis=1) == 1).all()) else labels
    is_whole = bool((labels == np.round(labels)).all()) if labels.dtype.kind == "f" else labels.dtype.kind == "b"
    return labels.astype(np.int64) if is_whole else labels


def _only_input(details: VersionDetails) -> TensorSpec:
    required = [spec for spec in details.inputs if not spec.is_optional]
    if len(required) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in required) or "none"
        raise FileError(f"model '{details.model}': expected one input for a .png file, got {names}")
    return required[0]


def _arrays(path: Path, suffix: str) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _expected(path, suffix, ".npy", {"": loaded})
            with loaded as archive:
                return _expected(path, suffix, ".npz", {name: archive[name] for name in archive.files})
    except FileNotFoundError:
        raise FileError(f"file '{path}': expected a file, found none") from None
    except FileError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"file '{path}': expected a {suffix} file of numpy, got {error}") from None


def _expected(path: Path, suffix: str, found: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    if suffix != found:
        raise FileError(f"file '{path}': expected a {suffix} file of numpy, got a {found} file")
    return dict(arrays)
