"""Checks the plain arguments of an export: tolerance, task, names, seed, held-out examples.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fitserve_contract.repository import check_model_name
from fitserve_contract.scoring import check_labels, output_fault
from fitserve_contract.tasks import IGNORED_LABEL, Task, TaskKind
from fitserve_exporters.candidate.candidate import Array, Tolerance
from fitserve_exporters.errors import ExportError


def check_name(name: Any) -> str:
    """Returns the model's name. ExportError: it may not name a model."""
    if not isinstance(name, str):
        raise ExportError(f"model name: expected text, got {type(name).__name__}; for example 'digits'")
    try:
        return check_model_name(name)
    except ValueError as error:
        raise ExportError(str(error)) from error


def check_tolerance(tolerance: Any) -> Tolerance:
    """Returns the tolerance, the default one for None. ExportError: something else, or numbers below 0."""
    if tolerance is None:
        return Tolerance()
    if not isinstance(tolerance, Tolerance):
        value = f"{tolerance:g}" if isinstance(tolerance, float) else "1e-3"
        raise ExportError(
            f"tolerance: expected a Tolerance, got {type(tolerance).__name__}; write Tolerance(atol={value}, "
            "reason='...'), from fitserve_exporters"
        )
    for field in dataclasses.fields(tolerance):
        value = getattr(tolerance, field.name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(field.default, float) and not (is_number and 0 <= value < float("inf")):
            raise ExportError(f"tolerance: expected {field.name} to be a finite number of at least 0, got {value!r}")
    return tolerance


def check_seed(seed: Any) -> int:
    """Returns the seed. ExportError: no integer of at least 0."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or number < 0:
        raise ExportError(f"seed: expected an integer of at least 0, got {seed!r}; for example 0")
    return number


def check_names(names: Any, what: str) -> tuple[str, ...] | None:
    """Returns input or output names, None where none are chosen. ExportError: no sequence of distinct names."""
    if names is None:
        return None
    if isinstance(names, str | bytes) or not isinstance(names, Sequence):
        raise ExportError(f"{what}: expected a list of names, got {names!r}; for example ['{str(names)[:40]}']")
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ExportError(f"{what}: expected printable names, none empty, got {name!r}")
    if not names or len(set(names)) < len(names):
        raise ExportError(f"{what}: expected at least one name, each once, got {list(names)}")
    return tuple(names)


def check_task(task: Any, shapes: Mapping[str, tuple[int | str, ...]], kinds: Mapping[str, str]) -> Task | None:
    """Checks a task against the outputs.

    Args:
        task: The caller's.
        shapes: Shape of each output, with a name for its first axis.
        kinds: numpy's kind of each output's elements.

    Raises:
        ExportError: no Task, an output that is not there, or one whose shape or classes are not the task's.
    """
    if task is None:
        return None
    if not isinstance(task, Task):
        raise ExportError(
            f"task: expected a Task, got {type(task).__name__}; write Task(TaskKind.CLASSIFICATION, 'output', "
            "Scores.LOGITS, ('a', 'b')), from fitserve_contract.tasks"
        )
    if task.output not in shapes:
        raise ExportError(f"task: expected an output of {', '.join(shapes)}, got '{task.output}'")
    shape = shapes[task.output]
    if task.kind is not TaskKind.REGRESSION and kinds[task.output] != "f":
        raise ExportError(
            f"task: expected output '{task.output}' to be real scores, got other elements; return the scores, not the "
            "class"
        )
    if fault := output_fault(task, shape):
        raise ExportError(f"task: {fault}")
    return task


def check_held_out(held_out: Any) -> tuple[Any, Array | None]:
    """Takes held-out examples and labels apart. ExportError: no pair, or labels that are no numbers."""
    if not isinstance(held_out, tuple | list) or len(held_out) != 2:
        kind = f"{type(held_out).__name__} of {len(held_out)}" if isinstance(held_out, tuple | list) else type(held_out)
        found = kind if isinstance(kind, str) else kind.__name__
        raise ExportError(f"held_out: expected (examples, labels), got {found}; labels may be None: (examples, None)")
    examples, labels = held_out
    if isinstance(labels, torch.Tensor):
        is_plain = labels.layout == torch.strided and not labels.is_quantized and labels.dtype != torch.bfloat16
        if not is_plain or labels.device.type == "meta":
            raise ExportError(
                f"labels: expected a dense tensor that numpy can hold, got {labels.dtype} {labels.layout}"
            )
        labels = labels.detach().cpu().numpy()
    if labels is None:
        return examples, None
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise ExportError(f"labels: expected an array, got {type(labels).__name__}: {error}") from error
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise ExportError(
            f"labels: expected numbers, one row per example, got {array.dtype} {array.shape}; name classes by their "
            "index in class_names"
        )
    return examples, array


def check_labels_fit(task: Task | None, labels: Array | None, output_shape: tuple[int, ...]) -> None:
    """Checks labels against the task and the task's output for as many examples. ExportError: they do not fit."""
    if task is None or labels is None:
        return
    if task.kind is TaskKind.TOKEN_CLASSIFICATION and labels.ndim == 2:
        # The axis of positions may be free, and another one in the held-out set than in the example.
        output_shape = (output_shape[0], labels.shape[1], *output_shape[2:])
    try:
        check_labels(task, labels, output_shape)
    except ValueError as error:
        raise ExportError(f"held_out: {error}; {_label_cure(task)}") from error


def _label_cure(task: Task) -> str:
    return {
        TaskKind.CLASSIFICATION: "classification has one class index per example, int64 (B)",
        TaskKind.TOKEN_CLASSIFICATION: "token_classification has one class index per position, int64 (B, S), "
        f"{IGNORED_LABEL} where a position does not count",
        TaskKind.MULTI_LABEL: "multi-label has one 0 or 1 per class, bool (B, C)",
        TaskKind.REGRESSION: "regression has the output's shape; add an axis with y[:, None]",
    }[task.kind]
