"""From a finished run to a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch

from fitserve_exporters.candidate.calling import by_position
from fitserve_exporters.candidate.candidate import Array, Candidate, HeldOut, InputSpec, Tolerance
from fitserve_exporters.candidate.served_module import Served, serve
from fitserve_exporters.card_curves import read_curves
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.quiet import quiet
from fitserve_exporters.preprocessing.columns_front import ColumnsFront
from fitserve_training.runs import TrainedRun, open_run

_LOOKED_AT: Final = 4
"""Held-out examples that the module is run on to find its outputs."""


def run_candidate(run_dir: Path, *, data_dir: Path | None = None, calibration_count: int = 0) -> tuple[str, Candidate]:
    """Opens a finished run with its held-out data.

    Args:
        run_dir: What `fitserve-train` wrote.
        data_dir: Where data files are; the environment's DATA_DIR where it is None.
        calibration_count: Training examples for the ranges of a quantized variant.

    Returns:
        The recipe's name, and the candidate.

    Raises:
        fitserve_training.errors.UsageError: no finished run, a damaged file, or data that is not at hand.
        ExportError: the run's parts do not fit each other.
    """
    run = open_run(run_dir, data_dir=data_dir)
    held_out = run.held_out()
    front = None if run.columns is None else ColumnsFront(run.columns)
    looked_at = {name: array[:_LOOKED_AT] for name, array in held_out.inputs.items()}
    with quiet():
        served = _served(run, looked_at if front is None else front.encode(looked_at))
    return run.recipe, Candidate(
        module=served.module,
        inputs=front.inputs if front else tuple(InputSpec(spec.name, spec.dtype, spec.shape) for spec in run.inputs),
        output_names=served.output_names,
        held_out=HeldOut(held_out.inputs, held_out.labels, held_out.source, held_out.sha256),
        task=run.task,
        training={**run.training_record, "curves": read_curves(run_dir)},
        tolerance=tolerance_of(run.tolerance),
        seed=_seed(run),
        extra_files=run.extra_files,
        calibration=run.training_inputs(calibration_count, _seed(run)) if calibration_count else {},
        notes=served.notes,
        front=front,
    )


def _served(run: TrainedRun, inputs: Mapping[str, Array]) -> Served:
    names = [spec.name for spec in run.inputs]
    calling = by_position(run.module, len(names), names)
    rows = {name: torch.from_numpy(inputs[name]) for name in names}
    return serve(run.module, calling, rows, run.output_names)


def tolerance_of(overrides: Mapping[str, Any] | None) -> Tolerance:
    """Builds a recipe's tolerance from the fields of Tolerance, as far as it gives them.

    Raises:
        ExportError: another key.
    """
    if not overrides:
        return Tolerance()
    known = [entry.name for entry in fields(Tolerance)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ExportError(f"recipe's tolerance: expected {', '.join(known)}, got {', '.join(unknown)}")
    return Tolerance(**({"reason": "set by the recipe"} | dict(overrides)))


def _seed(run: TrainedRun) -> int:
    seed = run.training_record.get("seed", 0)
    return seed if isinstance(seed, int) else 0
