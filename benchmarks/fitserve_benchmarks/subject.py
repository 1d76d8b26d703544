"""What is measured: one model version of a repository, with the module it was exported from where there is a run.

Shapes: B examples of one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from fitserve_contract import repository
from fitserve_contract.certificate import HELD_OUT_FILE, read_held_out
from fitserve_contract.files import UnsafeFileError
from fitserve_contract.manifest import ManifestError, read_manifest

if TYPE_CHECKING:
    import torch

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Batch: TypeAlias = Mapping[str, Array]

_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class SubjectError(ValueError):
    """What was named cannot be measured; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input as ONNX Runtime reports it; a free axis is its name or None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def has_free_features(self) -> bool:
        """Tells whether an axis other than the first is free, so that its size cannot be known from the model."""
        return any(not isinstance(axis, int) for axis in self.shape[1:])


@dataclass(frozen=True, slots=True)
class VariantFile:
    """A further file of the version.

    Args:
        path: Where it is.
        device: `cpu` or `cuda`: where it is meant to run.
        bound: How far its answers may be off by its own record.
    """

    path: Path
    device: str
    bound: float


@dataclass(frozen=True)
class Subject:
    """A model version under measurement.

    Args:
        model: Model name.
        version: Version number.
        onnx_path: Its ONNX file.
        inputs: Its inputs in order; the first axis of each counts the examples.
        rows: Real examples by input name, from which inputs that cannot be invented are drawn.
        module: The eager module in eval mode that was exported, taking the inputs by position; None without a run.
        variants: The version's variants, by name.
    """

    model: str
    version: int
    onnx_path: Path
    inputs: tuple[InputSpec, ...]
    rows: Batch = field(default_factory=dict)
    module: torch.nn.Module | None = None
    variants: Mapping[str, VariantFile] = field(default_factory=dict)


def open_subject(root: Path, model: str, version: int | None = None, run_dir: Path | None = None) -> Subject:
    """Opens a version of a repository for measuring.

    Args:
        root: Model repository.
        model: Model name.
        version: Version number; None takes the highest.
        run_dir: The run it was exported from; None measures ONNX Runtime alone.

    Raises:
        SubjectError: no such model, version or run, no batch axis, or a file that cannot be read.
    """
    number = highest_version(root, model) if version is None else version
    path = repository.version_path(root, model, number)
    if not path.folder.is_dir():
        found = repository.versions(root, model)
        raise SubjectError(f"model '{model}' version {number}: expected it in repository '{root}', found {found}")
    onnx_path = path.folder / repository.MODEL_FILE
    inputs = _read_inputs(onnx_path)
    module = None if run_dir is None else _open_module(run_dir)
    rows, variants = _read_rows(path.folder), _read_variants(path.folder)
    return Subject(model, path.version, onnx_path, inputs, rows, module, variants)


def highest_version(root: Path, model: str) -> int:
    """Gives the highest version of a model in a repository.

    Raises:
        SubjectError: there is none.
    """
    versions = repository.versions(root, model)
    if not versions:
        raise SubjectError(
            f"model '{model}': expected a version in repository '{root}', found none; export one with fitserve-export"
        )
    return versions[-1]


def random_batches(subject: Subject, batch_size: int, count: int, seed: int = 0) -> list[Batch]:
    """Makes different random batches; the same arguments make the same ones.

    Floating-point inputs of known shape are uniform in [0, 1). Others (token ids, sequences of any length) are examples
    of the subject's own drawn at random with replacement: invented ones might be outside what the model takes.

    Raises:
        SubjectError: an input cannot be invented and the subject has no examples.
    """
    generator = np.random.default_rng((seed, batch_size))
    if all(spec.dtype.kind == "f" and not spec.has_free_features for spec in subject.inputs):
        return [{spec.name: _uniform(spec, batch_size, generator) for spec in subject.inputs} for _ in range(count)]
    missing = [spec.name for spec in subject.inputs if spec.name not in subject.rows]
    if missing:
        raise SubjectError(
            f"input '{missing[0]}': expected examples to draw from, since its values cannot be invented; found none "
            f"(a version published by fitserve-export has them in {HELD_OUT_FILE})"
        )
    row_count = len(subject.rows[subject.inputs[0].name])
    picks = generator.integers(0, row_count, size=(count, batch_size))
    return [{spec.name: subject.rows[spec.name][rows] for spec in subject.inputs} for rows in picks]


def _uniform(spec: InputSpec, batch_size: int, generator: np.random.Generator) -> Array:
    features = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
    return generator.random((batch_size, *features)).astype(spec.dtype)


def _read_inputs(onnx_path: Path) -> tuple[InputSpec, ...]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise SubjectError(f"file '{onnx_path}': expected a model that ONNX Runtime loads: {error}") from None
    return tuple(_input_spec(node.name, node.type, node.shape) for node in session.get_inputs())


def _input_spec(name: str, type_name: str, shape: list[int | str | None]) -> InputSpec:
    if type_name not in _DTYPES:
        raise SubjectError(f"input '{name}': expected numbers to measure with, got {type_name}")
    if not shape or isinstance(shape[0], int):
        raise SubjectError(f"input '{name}': expected a free first axis that counts the examples, got shape {shape}")
    return InputSpec(name, np.dtype(_DTYPES[type_name]), tuple(shape))


def _read_rows(folder: Path) -> Batch:
    try:
        examples = read_held_out(folder)
    except ValueError as error:
        raise SubjectError(f"version '{folder}': {error}") from None
    return {} if examples is None else examples.inputs


def _read_variants(folder: Path) -> dict[str, VariantFile]:
    try:
        manifest = read_manifest(folder)
    except (ManifestError, UnsafeFileError) as error:
        raise SubjectError(f"version '{folder}': {error}") from None
    files = manifest.files if manifest else {}
    return {
        str(facts["variant"]): VariantFile(folder / file, str(facts["device"]), _bound(facts))
        for file, facts in files.items()
        if isinstance(facts, Mapping) and {"variant", "device", "verification"} <= set(facts)
    }


def _bound(facts: Mapping[str, Any]) -> float:
    """Gives the largest tolerance of any output in a variant's record."""
    bounds = facts["verification"].get("tolerance", {}).get("per_output", {})
    return max(map(float, bounds.values()), default=0.0)


def _open_module(run_dir: Path) -> torch.nn.Module:
    from fitserve_training.errors import UsageError
    from fitserve_training.runs import open_run

    try:
        return open_run(run_dir).module
    except UsageError as error:
        raise SubjectError(str(error)) from None
