"""Proves that no row of a variant depends on its neighbours: held-out rows stand beside hostile ones.

The rule is the server's own: bit-equal to the same row beside copies of itself, at the same size and position.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from fitserve_contract.datatypes import datatype_of
from fitserve_contract.joinability.proof import prove_rows
from fitserve_contract.joinability.trial import SIZES, Rows, hostile_rows, trial_problem
from fitserve_exporters.candidate.candidate import Arrays, Candidate, numpy_dtype
from fitserve_exporters.errors import VariantError
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.sampling import sampled_indices

_HELD_OUT_ROWS: Final = 4
_BUDGET_S: Final = 60.0
"""Time for the trial of a large model; the first held-out row is tried beside hostile ones in any case."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What became of held-out rows beside hostile ones.

    Args:
        held_out_count: Held-out rows that were tried.
        hostile_count: Hostile rows beside them; the model may have refused some.
        batch_sizes: Rows in a batch.
        unproved: Why the graph of the fp32 file does not prove its rows independent; empty where both graphs do.
        fp32_problem: Why the fp32 file's rows depend on their neighbours; the variant's need not be independent then.
        is_complete: Whether all rows were tried at all sizes within the time.
    """

    held_out_count: int
    hostile_count: int
    batch_sizes: tuple[int, ...]
    unproved: str
    fp32_problem: str
    is_complete: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the record as the manifest writes it."""
        return {
            "rule": "a row beside others is bit-equal to itself beside copies, at the same batch size and position",
            "rows_are_independent": not self.fp32_problem,
            "is_proved_by_graph": not self.unproved,
            "unproved": self.unproved or None,
            "fp32_problem": self.fp32_problem or None,
            "held_out_count": self.held_out_count,
            "hostile_count": self.hostile_count,
            "batch_sizes": list(self.batch_sizes),
            "is_complete": self.is_complete,
        }


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A model file with a session of it."""

    content: bytes
    session: OrtSession


def prove_neighbours(candidate: Candidate, variant: OpenFile, fp32: OpenFile) -> Neighbours:
    """Proves it by the graph, then runs held-out rows beside large, tiny, NaN and infinite ones, extremes of integers.

    Args:
        candidate: Its held-out set.
        variant: The file that is proved.
        fp32: The file that it was made from, on the same provider.

    Raises:
        VariantError: a row depends on its neighbours where the fp32 file's rows do not, or a number stands where the
                fp32 file answers NaN.
    """
    unproved = prove_rows(fp32.content).problem
    if not unproved and (problem := prove_rows(variant.content).problem):
        raise VariantError(f"rows are not proved independent, those of the fp32 file are: {problem}")
    held_out = _held_out_rows(candidate)
    hostile = hostile_rows(held_out[0], {spec.name: datatype_of(numpy_dtype(spec.dtype)) for spec in candidate.inputs})
    rows = [held_out[0], *hostile, *held_out[1:]]
    budget = _Budget(time.monotonic() + _BUDGET_S)
    problem = trial_problem(partial(_answers, variant.session), rows, is_over=budget.is_over)
    fp32_problem = trial_problem(partial(_answers, fp32.session), rows, is_over=budget.is_over) if problem else ""
    if problem and not fp32_problem:
        raise VariantError(f"rows depend on their neighbours, those of the fp32 file do not: {problem}")
    for row in hostile:
        _check_nan_stays(variant.session, fp32.session, row)
    return Neighbours(len(held_out), len(hostile), SIZES, unproved, fp32_problem, not budget.was_over)


@dataclass(slots=True)
class _Budget:
    end_s: float
    was_over: bool = False

    def is_over(self) -> bool:
        self.was_over = self.was_over or time.monotonic() > self.end_s
        return self.was_over


def _held_out_rows(candidate: Candidate) -> list[Arrays]:
    indices = sampled_indices(candidate, _HELD_OUT_ROWS)
    return [candidate.held_out.rows(indices[place : place + 1]) for place in range(len(indices))]


def _answers(session: OrtSession, rows: Rows) -> Arrays | None:
    try:
        return session.run(dict(rows))
    except Exception:  # ONNX Runtime's exceptions share no base class below Exception: the values are refused
        return None


def _check_nan_stays(session: OrtSession, fp32: OrtSession, row: Rows) -> None:
    if not any(array.dtype.kind == "f" and np.isnan(array).any() for array in row.values()):
        return
    expected, found = _answers(fp32, row), _answers(session, row)
    if expected is None or found is None:
        return
    for name, one in expected.items():
        if one.dtype.kind != "f":
            continue
        count = int((np.isnan(one) & ~np.isnan(found[name])).sum())
        if count:
            raise VariantError(f"output '{name}': expected NaN for a row with NaN as of fp32, got {count} numbers")
