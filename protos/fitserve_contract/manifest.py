"""`manifest.json`: what ONNX cannot say about a version, how it was made, and the figures that prove it.

A manifest read from a repository is untrusted: everything that the service uses is checked here, and named when wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fitserve_contract.axis_ranges import AxisRange
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.files import read_beneath
from fitserve_contract.repository import MANIFEST_FILE, MAX_TEXT_BYTES
from fitserve_contract.tasks import Task

SCHEMA_VERSION: Final = 1

FOR_CALLERS: Final = "is_for_callers"
"""Fact of a file that is meant for whoever calls the model, such as the tokenizer of a model of text."""


class ManifestError(ValueError):
    """A manifest that cannot be read; the message names the key, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Args:
        name: Name in the model.
        datatype: OIP spelling.
        shape: Size of each axis; a free axis is its name (str), or None without a name. None for a free rank.
        is_optional: An input that may be left out.
        ranges: Of an input's free axes, those whose sizes are bounded; the others have any size.
    """

    name: str
    datatype: str
    shape: tuple[int | str | None, ...] | None
    is_optional: bool = False
    ranges: tuple[AxisRange, ...] = ()

    def range_texts(self) -> list[str]:
        """Writes the sizes that its free axes may have for people, one text per axis that is bounded."""
        shape = self.shape or ()
        return [text for one in self.ranges if (text := one.text(str(shape[one.axis])))]

    def to_json(self) -> dict[str, Any]:
        """Gives the spec as the manifest writes it."""
        shape = None if self.shape is None else list(self.shape)
        ranges = {"ranges": [one.to_json() for one in self.ranges]} if self.ranges else {}
        fixed = {"name": self.name, "datatype": self.datatype, "shape": shape, "is_optional": self.is_optional}
        return fixed | ranges

    @staticmethod
    def from_json(value: Any, where: str) -> TensorSpec:
        """Reads what `to_json` wrote.

        Raises:
            ManifestError: names `where` and what is wrong there.
        """
        entry = _object(value, where)
        name = _text(entry.get("name"), f"{where}.name")
        datatype = _text(entry.get("datatype"), f"{where}.datatype")
        if datatype not in NUMPY_DTYPES:
            raise ManifestError(f"{where}.datatype: expected one of {', '.join(NUMPY_DTYPES)}, got '{datatype[:64]}'")
        shape = entry.get("shape")
        if shape is not None and not (isinstance(shape, list) and all(_is_axis(axis) for axis in shape)):
            raise ManifestError(f"{where}.shape: expected a list of sizes >= 0, names or null, got {str(shape)[:80]}")
        axes = None if shape is None else tuple(shape)
        ranges = _ranges(entry.get("ranges", []), axes, where)
        return TensorSpec(name, datatype, axes, bool(entry.get("is_optional", False)), ranges)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version says of itself.

    Args:
        model: Model name it was published under.
        created_at: UTC, ISO 8601.
        inputs: Inputs in the model's order.
        outputs: Outputs in the model's order.
        task: What its outputs mean; None where nothing can be scored.
        training: How it was trained: recipe, seed, config, data hashes, device, compile mode, commit.
        verification: Export verification figures, per batch size and output.
        environment: Versions of the packages and the hardware that made it.
        onnx: Opset, IR version, operators.
        files: What further files of the version are: file name to facts. Those whose fact FOR_CALLERS is true are given
            to callers that ask.
    """

    model: str
    created_at: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: Task | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    onnx: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files_for_callers(self) -> tuple[str, ...]:
        """Names of the files that callers may ask for, sorted."""
        return tuple(sorted(name for name, facts in self.files.items() if _is_for_callers(facts)))

    def to_bytes(self) -> bytes:
        """Writes the manifest as UTF-8 JSON with sorted keys.

        Raises:
            ValueError: a figure is NaN or infinite, which JSON cannot say.
        """
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "created_at": self.created_at,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "task": self.task.to_json() if self.task else None,
            "training": dict(self.training),
            "verification": dict(self.verification),
            "environment": dict(self.environment),
            "onnx": dict(self.onnx),
            "files": dict(self.files),
        }
        return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> Manifest:
        """Reads a manifest.

        Raises:
            ManifestError: not JSON, another schema version, or a value that is not what was expected.
        """
        try:
            document = _object(json.loads(content), "manifest")
        except (ValueError, RecursionError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(f"manifest: expected JSON, got {str(error)[:120]}") from None
        if document.get("schema_version") != SCHEMA_VERSION:
            found = str(document.get("schema_version"))[:32]
            raise ManifestError(f"manifest.schema_version: expected {SCHEMA_VERSION}, got {found}")
        return Manifest(
            model=_text(document.get("model"), "manifest.model"),
            created_at=_text(document.get("created_at"), "manifest.created_at"),
            inputs=_specs(document, "inputs"),
            outputs=_specs(document, "outputs"),
            task=_task(document.get("task")),
            **{key: _object(document.get(key, {}), f"manifest.{key}") for key in _SECTIONS},
        )


def _is_for_callers(facts: Any) -> bool:
    return isinstance(facts, Mapping) and facts.get(FOR_CALLERS) is True


_SECTIONS = ("training", "verification", "environment", "onnx", "files")


def read_manifest(folder: Path) -> Manifest | None:
    """Reads the manifest of the version in a folder; None where it has none.

    Raises:
        ManifestError: it cannot be understood.
        UnsafeFileError: it is no regular file of this folder.
    """
    try:
        return Manifest.from_bytes(read_beneath(folder, MANIFEST_FILE, max_bytes=MAX_TEXT_BYTES))
    except FileNotFoundError:
        return None


def _specs(document: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise ManifestError(f"manifest.{key}: expected a list, got {type(entries).__name__}")
    return tuple(TensorSpec.from_json(entry, f"manifest.{key}[{index}]") for index, entry in enumerate(entries))


def _ranges(value: Any, shape: tuple[int | str | None, ...] | None, where: str) -> tuple[AxisRange, ...]:
    if not isinstance(value, list):
        raise ManifestError(f"{where}.ranges: expected a list, got {type(value).__name__}")
    try:
        found = tuple(AxisRange.from_json(one, f"{where}.ranges[{index}]") for index, one in enumerate(value))
    except ValueError as error:
        raise ManifestError(str(error)) from None
    for index, one in enumerate(found):
        if shape is None or one.axis >= len(shape):
            raise ManifestError(f"{where}.ranges[{index}].axis: expected an axis of shape {shape}, got {one.axis}")
    return found


def _task(value: Any) -> Task | None:
    if value is None:
        return None
    try:
        return Task.from_json(_object(value, "manifest.task"))
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(f"manifest.{error}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: expected an object, got {type(value).__name__}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"{where}: expected a string, got {type(value).__name__}")
    return value


def _is_axis(axis: Any) -> bool:
    return axis is None or isinstance(axis, str) or (type(axis) is int and axis >= 0)
