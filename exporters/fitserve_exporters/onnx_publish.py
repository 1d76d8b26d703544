"""The Python call for an ONNX file of any origin: proved against a callable, to a verified version.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch

from fitserve_contract.manifest import TensorSpec
from fitserve_contract.scoring import SCORED_AXES
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.arguments import (
    check_held_out,
    check_labels_fit,
    check_name,
    check_names,
    check_seed,
    check_task,
    check_tolerance,
)
from fitserve_exporters.candidate.calling import Calling
from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate, HeldOut, InputSpec, Tolerance
from fitserve_exporters.candidate.examples import BATCH, Examples, FreeAxes, TensorLike, arrays_of
from fitserve_exporters.candidate.extra_files import check_extra_files
from fitserve_exporters.candidate.numpy_reference import NumpyReference, Reference
from fitserve_exporters.candidate.score_check import check_class_names, check_scores
from fitserve_exporters.candidate.surroundings import own_surroundings
from fitserve_exporters.candidate.training_record import json_record
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.graph.onnx_export import ExportedGraph
from fitserve_exporters.graph.onnx_source import (
    input_values,
    keep_outputs,
    name_axes,
    output_specs_of,
    read_onnx,
    sizes_of,
)
from fitserve_exporters.graph.signature import tensor_spec
from fitserve_exporters.publishing.publish import publish_graph
from fitserve_exporters.publishing.published_version import PublishedVersion
from fitserve_exporters.publishing.repository_check import check_repository
from fitserve_exporters.texts import of_reference, sentence

__all__ = ["publish_onnx"]

_DRAWN_EXAMPLES: Final = 64
"""So many inputs are drawn where there is no held-out set."""

_PROBABILITY_SLACK: Final = 1e-3
"""Rows that sum to 1 within this, of numbers in 0..1, are probabilities."""


def publish_onnx(
    file: bytes | str | os.PathLike[str],
    reference: Reference,
    examples: Examples,
    repository: str | os.PathLike[str],
    name: str,
    *,
    float64: Reference | None = None,
    held_out: tuple[Examples, TensorLike | None] | None = None,
    task: Task | TaskKind | str | None = None,
    class_names: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    free_axes: FreeAxes | None = None,
    tolerance: Tolerance | None = None,
    training: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    seed: int = 0,
    allow_nan: Sequence[str] = (),
    allow_coupled_rows: bool = False,
) -> PublishedVersion:
    """Proves an ONNX file against a Python callable and publishes it as the model's next version.

    The judgement is that of `export`: each element within its own bound, every batch size and free axis, rows alone and
    beside hostile neighbours. The bound is the distance of `reference` to its float64 answers. These come from
    `float64`, or are the answers of `reference` itself where it returns float64. Without either the answers count as
    exact, so that an element may be off by 1e-5 of its feature's scale (`rtol`), or by what the reference moves when
    its inputs move by one epsilon. Integers, such as predicted labels, have to be the same.

    Args:
        file: ONNX from skl2onnx, tf2onnx, onnxmltools or anything else: its path, or its bytes. External data has to
            lie beside it and is taken into the version's file.
        reference: Takes one array (B, ...) per input by position, in the file's datatypes and texts as `str` objects;
            returns an array, a tuple in the order of the outputs, or a mapping by their names. An axis of 1 at the end
            may be missing.
        examples: Inputs, each (B, ...): an array, a sequence or a mapping by input name. Real numbers are rounded to
            the file's datatypes.
        repository: Model repository; made where it is not there.
        name: Model name: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
        float64: The same model in float64; gets real inputs in float64.
        held_out: Inputs in the same form as `examples` and their labels or None. Without it the file is proved on the
            examples and on inputs drawn from their columns, and the version says so.
        task: What the outputs mean, so that Evaluate can score them. A kind ("classification", "multi_label",
            "regression") takes the only output that fits; rows of `reference` that sum to 1 are then probabilities,
            other scores logits.
        class_names: With a kind: one per column of the output.
        outputs: Of the file, those that are published; the others are removed from it.
        free_axes: Axes beside the batch that callers may choose, as in `export`; by default all that the file leaves
            free. Others are fixed to the size of the examples.
        tolerance: By default the one that Tolerance explains.
        training: How it was trained, for the manifest.
        extra_files: Further files for callers, by name.
        seed: Of all sampling.
        allow_nan: Outputs that may be NaN.
        allow_coupled_rows: Publishes a file whose rows depend on each other, as one that is never joined.

    Raises:
        ExportError: an argument is not as said here, or the file cannot be served; nothing is published.
        NotVerifiedError: ONNX Runtime's answers are not those of the reference; nothing is published.
    """
    checked_name = check_name(name)
    path = check_repository(repository, checked_name)
    _check_callables(reference, float64)
    settings: dict[str, Any] = {
        "tolerance": check_tolerance(tolerance),
        "training": json_record({} if training is None else training),
        "seed": check_seed(seed),
        "extra_files": check_extra_files(extra_files),
        "allow_coupled_rows": bool(allow_coupled_rows),
        "allow_nan": check_names(allow_nan or None, "allow_nan") or (),
    }
    try:
        with own_surroundings():
            model = read_onnx(file)
            keep_outputs(model, check_names(outputs, "outputs"))
            candidate, graph = _candidate(
                model, (reference, float64), (examples, held_out), (task, class_names), free_axes, settings
            )
            return _published(candidate, graph, path, checked_name)
    except (ExportError, NotVerifiedError):
        raise
    except Exception as error:
        raise ExportError(
            f"publish_onnx: unexpected {sentence(error)}; this is a fault of fitserve: please report it with its "
            "traceback"
        ) from error


def _published(candidate: Candidate, graph: ExportedGraph, repository: Path, name: str) -> PublishedVersion:
    try:
        return publish_graph(candidate, graph, repository, name)
    except (ExportError, NotVerifiedError) as error:
        raise type(error)(of_reference(str(error))) from error


def _check_callables(reference: Any, float64: Any) -> None:
    if not callable(reference):
        raise ExportError(
            f"reference: expected a callable that takes and returns arrays, got {type(reference).__name__}; for "
            "example model.predict_proba"
        )
    if float64 is not None and not callable(float64):
        raise ExportError(f"float64: expected a callable or None, got {type(float64).__name__}")


def _candidate(
    model: onnx.ModelProto,
    callables: tuple[Reference, Reference | None],
    data: tuple[Examples, tuple[Examples, TensorLike | None] | None],
    meaning: tuple[Task | TaskKind | str | None, Sequence[str]],
    free_axes: FreeAxes | None,
    settings: Mapping[str, Any],
) -> tuple[Candidate, ExportedGraph]:
    values = input_values(model)
    declared = [tensor_spec(value) for value in values]
    calling = Calling(tuple(spec.name for spec in declared), (None,) * len(declared))
    dtypes = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in values}
    arrays = _typed(arrays_of(data[0], calling, "examples", takes_texts=True), dtypes, "examples")
    shapes = {spec.name: _shape(spec, arrays[spec.name], declared[0], free_axes) for spec in declared}
    graph = ExportedGraph(name_axes(model, shapes), sizes_of(shapes, arrays))
    specs = output_specs_of(model)
    module = NumpyReference(*callables, specs, [dtypes[name] for name in calling.names])
    held_out = _held_out(data[1], calling, (arrays, dtypes), module, settings["seed"])
    sample = dict(zip((s.name for s in specs), module(*arrays.values()), strict=True))
    answers = {name: tensor.numpy() for name, tensor in sample.items()}
    candidate = Candidate(
        module=module,
        inputs=tuple(InputSpec(n, _torch_dtype(arrays[n]), shapes[n]) for n in calling.names),
        output_names=tuple(answers),
        held_out=held_out,
        task=_task(*meaning, answers, held_out),
        reference="a Python reference",
        **settings,
    )
    return candidate, graph


def _typed(arrays: Arrays, dtypes: Mapping[str, np.dtype[Any]], what: str) -> Arrays:
    """Brings examples to the file's datatypes: real numbers are rounded, integers have to fit."""
    typed = {}
    for name, array in arrays.items():
        dtype = dtypes[name]
        if "O" in (dtype.kind, array.dtype.kind):
            if dtype.kind != array.dtype.kind:
                kinds = [("texts" if each.kind == "O" else str(each)) for each in (dtype, array.dtype)]
                raise ExportError(f"{what}, input '{name}': expected {kinds[0]} as in the file, got {kinds[1]}")
            typed[name] = array
            continue
        if not np.can_cast(array.dtype, dtype, "same_kind") or (dtype.kind == "f") != (array.dtype.kind == "f"):
            raise ExportError(f"{what}, input '{name}': expected {dtype} as in the file, got {array.dtype}")
        with np.errstate(over="ignore"):
            typed[name] = np.ascontiguousarray(array.astype(dtype))
        if dtype.kind != "f" and not np.array_equal(typed[name], array):
            raise ExportError(f"{what}, input '{name}': expected values that {dtype} holds, got others")
    return typed


def _torch_dtype(array: Array) -> torch.dtype | None:
    return None if array.dtype.kind == "O" else torch.from_numpy(array[:0]).dtype


def _shape(spec: TensorSpec, array: Array, first: TensorSpec, free_axes: FreeAxes | None) -> tuple[int | str, ...]:
    """Finds the shape that is published: named where it stays free, else the size of the examples."""
    assert spec.shape is not None
    assert first.shape is not None
    if len(spec.shape) != array.ndim or any(
        isinstance(size, int) and size != found for size, found in zip(spec.shape, array.shape, strict=True)
    ):
        raise ExportError(
            f"examples, input '{spec.name}': expected shape {spec.shape} as in the file, got {array.shape}"
        )
    chosen = None if free_axes is None else {axis % array.ndim: t for axis, t in free_axes.get(spec.name, {}).items()}
    shape: list[int | str] = [first.shape[0] if isinstance(first.shape[0], str) else BATCH]
    for axis, size in enumerate(spec.shape[1:], start=1):
        if isinstance(size, int) or (chosen is not None and axis not in chosen):
            shape.append(array.shape[axis])
        else:
            shape.append((chosen or {}).get(axis) or size or f"{spec.name}_{axis}")
    if shape[0] in shape[1:]:
        raise ExportError(
            f"input '{spec.name}': expected an axis beside the batch under a name of its own, got shape {spec.shape}; "
            "name the free ones with free_axes"
        )
    return tuple(shape)


def _held_out(
    held_out: tuple[Examples, TensorLike | None] | None,
    calling: Calling,
    typed: tuple[Arrays, Mapping[str, np.dtype[Any]]],
    module: NumpyReference,
    seed: int,
) -> HeldOut:
    arrays, dtypes = typed
    if held_out is not None:
        inputs, labels = check_held_out(held_out)
        rows = _typed(arrays_of(inputs, calling, "held_out", takes_texts=True), dtypes, "held_out")
        return HeldOut(rows, labels, "given to publish_onnx()")
    generator = np.random.default_rng(seed)
    drawn = {name: np.concatenate([array, _drawn(array, generator)]) for name, array in arrays.items()}
    try:
        module(*drawn.values())
    except ExportError:  # columns that belong together, as of one-hot codes
        return HeldOut(arrays, None, "the examples: no held-out set was given, and the reference takes no drawn inputs")
    return HeldOut(drawn, None, "the examples, and rows drawn from their columns: no held-out set was given")


def _drawn(array: Array, generator: np.random.Generator) -> Array:
    """Draws each element from the same place of another example."""
    rows = generator.integers(0, len(array), (_DRAWN_EXAMPLES, *array.shape[1:]))
    return np.asarray(np.take_along_axis(array, rows, axis=0))


def _task(task: Any, class_names: Sequence[str], answers: Arrays, held_out: HeldOut) -> Task | None:
    """Makes the task of a kind and class names, and checks it against the reference's answers."""
    class_names = class_names if isinstance(class_names, str | bytes) else tuple(class_names)  # an array has no truth
    if isinstance(class_names, str | bytes) or not all(isinstance(one, str) for one in class_names):
        raise ExportError(f"class_names: expected a list of texts, got {str(class_names)[:80]}")
    if class_names and (task is None or isinstance(task, Task)):
        raise ExportError("class_names: expected a kind of task beside them; for example task='classification'")
    made = task if task is None or isinstance(task, Task) else _task_of_kind(task, tuple(class_names), answers)
    shapes: dict[str, tuple[int | str, ...]] = {name: (BATCH, *array.shape[1:]) for name, array in answers.items()}
    if check_task(made, shapes, {name: array.dtype.kind for name, array in answers.items()}) is None:
        return None
    assert made is not None
    check_class_names(made)
    check_scores(made, answers[made.output])
    check_labels_fit(made, held_out.labels, (held_out.example_count, *answers[made.output].shape[1:]))
    return made


def _task_of_kind(task: Any, class_names: tuple[str, ...], answers: Arrays) -> Task:
    kinds = [kind.value for kind in TaskKind]
    if task not in kinds:
        raise ExportError(f"task: expected a Task or one of {', '.join(kinds)}, got {task!r}")
    kind = TaskKind(task)
    is_regression = kind is TaskKind.REGRESSION
    fitting = [
        name
        for name, array in answers.items()
        if array.dtype.kind == "f" and (is_regression or _is_scored(kind, array, len(class_names)))
    ]
    if len(fitting) != 1:
        shapes = ", ".join(
            f"'{name}' {array.dtype} (B, {str(array.shape[1:])[1:-1]})" for name, array in answers.items()
        )
        axes = ", ".join((*SCORED_AXES.get(kind, ()), str(len(class_names))))
        wanted = "real numbers" if is_regression else f"scores ({axes}), one per class name"
        raise ExportError(
            f"task: expected exactly one output of {wanted}, got {shapes}; give a Task(kind, output, scores, "
            "class_names) of fitserve_contract.tasks"
        )
    try:
        return Task(kind, fitting[0], _scores(kind, answers[fitting[0]]), class_names)
    except ValueError as error:
        raise ExportError(str(error)) from error


def _is_scored(kind: TaskKind, answers: Array, class_count: int) -> bool:
    return answers.ndim == len(SCORED_AXES[kind]) + 1 and answers.shape[-1] == class_count


def _scores(kind: TaskKind, answers: Array) -> Scores:
    if kind in (TaskKind.MULTI_LABEL, TaskKind.REGRESSION):
        return Scores.VALUES if kind is TaskKind.REGRESSION else Scores.PROBABILITIES
    sums = answers.astype(np.float64).sum(axis=-1)
    is_share = bool(np.all(answers >= 0) and np.all(np.abs(sums - 1) <= _PROBABILITY_SLACK))
    return Scores.PROBABILITIES if is_share else Scores.LOGITS
