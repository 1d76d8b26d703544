"""The Python call: a user's own trained module, straight to a verified version.

Shapes: B examples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from fitserve_contract.tasks import Task
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
from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate, HeldOut, Tolerance
from fitserve_exporters.candidate.examples import (
    BATCH,
    Examples,
    FreeAxes,
    TensorLike,
    arrays_of,
    calling_of,
    input_specs,
)
from fitserve_exporters.candidate.extra_files import check_extra_files
from fitserve_exporters.candidate.module_copy import unwrapped
from fitserve_exporters.candidate.score_check import check_class_names, check_scores
from fitserve_exporters.candidate.served_module import Served, serve
from fitserve_exporters.candidate.surroundings import own_surroundings
from fitserve_exporters.candidate.training_record import json_record
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.graph.quiet import quiet
from fitserve_exporters.publishing.publish import publish_candidate
from fitserve_exporters.publishing.published_version import PublishedVersion
from fitserve_exporters.publishing.repository_check import check_repository
from fitserve_exporters.texts import sentence

__all__ = ["PublishedVersion", "Tolerance", "export"]

_log = logging.getLogger(__name__)

_DRAWN_EXAMPLES: Final = 64
"""So many inputs are drawn where there is no held-out set."""

_DISTINCT_ELEMENTS: Final = 4096
"""Rows of more elements are drawn at once, which is faster, and hold some elements twice."""


def export(
    module: nn.Module,
    example: Examples,
    repository: str | os.PathLike[str],
    name: str,
    *,
    held_out: tuple[Examples, TensorLike | None] | None = None,
    task: Task | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    free_axes: FreeAxes | None = None,
    tolerance: Tolerance | None = None,
    training: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    seed: int = 0,
    allow_nan: Sequence[str] = (),
    allow_coupled_rows: bool = False,
) -> PublishedVersion:
    """Exports a trained module to ONNX, verifies it against eager torch, and publishes it as the model's next version.

    Neither the module nor torch's random state, default dtype and modes change; of several threads one exports, the
    others wait. While the graph is made, what torch
    and the module write to stdout and stderr is dropped.

    Args:
        module: Its forward takes tensors and returns a tensor, or a sequence, mapping, dataclass or NamedTuple of
            tensors, nested or not. Wrappers of torch.compile and DataParallel are taken off.
        example: Its inputs, each (B, ...): one tensor or a sequence, passed by position (also into `*args`), or a
            mapping, passed by keyword. Arguments of forward that are left out keep their defaults.
        repository: Model repository; made where it is not there.
        name: Model name: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
        held_out: Inputs in the same form as `example` and their labels or None. Without it the module is verified on
            inputs drawn from the values of `example`, and the version says so.
        task: What the outputs mean, so that Evaluate can score them.
        input_names: In the order of forward; by default the names of a mapping, else those of forward's parameters.
        output_names: One per output, or some of the keys that forward returns. By default those keys; `output`, or
            `output_0`, `output_1`, … where there are none. An output that is None is left out. The batch is the first
            axis of every output: where it is another one in torch, as in the states (layers, B, H) of an LSTM, it is
            moved there, and the manifest's notes say so.
        free_axes: Input name to axis to name, for free axes beside the batch: {"input_ids": {1: "sequence"}}. A
            negative axis counts from the end.
        tolerance: By default the one that Tolerance explains.
        training: How it was trained, for the manifest: JSON values, tensors and numpy numbers.
        extra_files: Further files for callers, by name, such as a tokenizer.json.
        seed: Of all sampling.
        allow_nan: Outputs that may be NaN; NaN in another output of the module itself is refused.
        allow_coupled_rows: Publishes a module whose rows depend on each other, as one that is never joined; by default
            it is refused.

    Raises:
        ExportError: an argument is not as said here, or the module cannot be exported; nothing is published.
        NotVerifiedError: ONNX Runtime's answers are not torch's; the message holds the figures, nothing is published.
    """
    checked_name = check_name(name)
    path = check_repository(repository, checked_name)
    settings: dict[str, Any] = {
        "tolerance": check_tolerance(tolerance),
        "training": json_record({} if training is None else training),
        "extra_files": check_extra_files(extra_files),
        "seed": check_seed(seed),
        "allow_coupled_rows": bool(allow_coupled_rows),
        "allow_nan": check_names(allow_nan or None, "allow_nan") or (),
    }
    names = check_names(input_names, "input_names"), check_names(output_names, "output_names")
    try:
        with own_surroundings():
            candidate = _candidate(unwrapped(module), example, held_out, task, names, free_axes, settings)
            return publish_candidate(candidate, path, checked_name)
    except (ExportError, NotVerifiedError):
        raise
    except Exception as error:
        raise ExportError(
            f"export: unexpected {sentence(error)}; this is a fault of fitserve: please report it with its traceback"
        ) from error


def _candidate(
    module: nn.Module,
    example: Examples,
    held_out: tuple[Examples, TensorLike | None] | None,
    task: Task | None,
    names: tuple[tuple[str, ...] | None, tuple[str, ...] | None],
    free_axes: FreeAxes | None,
    settings: Mapping[str, Any],
) -> Candidate:
    calling = calling_of(module, example, names[0])
    is_bfloat16 = any(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
    arrays = arrays_of(example, calling, widens_bfloat16=is_bfloat16)
    specs = input_specs(arrays, free_axes)
    data = _held_out(held_out, calling, arrays, settings["seed"], is_bfloat16=is_bfloat16)
    with quiet():
        served = serve(module, calling, {name: torch.from_numpy(array) for name, array in arrays.items()}, names[1])
    for note in served.notes:
        _log.warning("%s: %s", type(module).__name__, note)
    _check_task(task, served, data)
    return Candidate(
        module=served.module,
        inputs=specs,
        output_names=served.output_names,
        held_out=data,
        task=task,
        notes=served.notes,
        **settings,
    )


def _check_task(task: Task | None, served: Served, data: HeldOut) -> None:
    shapes: dict[str, tuple[int | str, ...]] = {name: (BATCH, *shape[1:]) for name, shape in served.shapes.items()}
    if check_task(task, shapes, served.kinds) is not None:
        assert task is not None
        check_class_names(task)
        check_scores(task, _answers(served, task.output, data))
        check_labels_fit(task, data.labels, (data.example_count, *served.shapes[task.output][1:]))


def _answers(served: Served, output: str, data: HeldOut) -> Array:
    """Computes one output on the first held-out examples."""
    rows = data.rows(np.arange(min(_DRAWN_EXAMPLES, data.example_count)))
    with torch.inference_mode(), quiet():
        answers = served.module(*map(torch.from_numpy, rows.values()))
    return np.asarray(dict(zip(served.output_names, answers, strict=True))[output].numpy())


def drawn_inputs(arrays: Arrays, seed: int) -> Arrays:
    """Draws inputs that look like the example: its own rows first, then others made of its values.

    Real elements are drawn from all of the tensor, none twice in a small row: torch and ONNX choose differently among
    equal ones in topk. Others (token ids, masks, categories) are drawn from the same place in another row, since their
    range may depend on the place.

    Args:
        arrays: Input name to (B, ...).
        seed: Same seed, same inputs.
    """
    generator = np.random.default_rng(seed)
    return {name: np.concatenate([array, _drawn(array, generator)]) for name, array in arrays.items()}


def _drawn(array: Array, generator: np.random.Generator) -> Array:
    shape = (_DRAWN_EXAMPLES, *array.shape[1:])
    if array.dtype.kind == "f":
        pool, size = array.reshape(-1), array.size // len(array)
        if size > _DISTINCT_ELEMENTS:
            return generator.choice(pool, shape)
        rows = [generator.choice(pool, size, replace=False) for _ in range(_DRAWN_EXAMPLES)]
        return np.stack(rows).reshape(shape)
    places = generator.integers(0, len(array), shape)
    return np.asarray(np.take_along_axis(array, places, axis=0))


def _held_out(
    held_out: tuple[Examples, TensorLike | None] | None,
    calling: Calling,
    arrays: Arrays,
    seed: int,
    *,
    is_bfloat16: bool,
) -> HeldOut:
    if held_out is None:
        return HeldOut(
            drawn_inputs(arrays, seed), None, "drawn from the values of the example: no held-out set was given"
        )
    examples, labels = check_held_out(held_out)
    inputs = arrays_of(examples, calling, "held_out", widens_bfloat16=is_bfloat16)
    return HeldOut(inputs, labels, "given to export()")
