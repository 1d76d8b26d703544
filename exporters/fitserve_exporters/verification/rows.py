"""Whether the rows of a batch depend on each other: proved by the graph, and tried out in torch and in ONNX Runtime.

The server joins rows of different callers. So every probe row is run alone, beside copies of itself, beside the other
probe rows, and between hostile neighbours: large, tiny, NaN and infinite reals, extremes of integers. A row that moves
by more than rounding is coupled to its neighbours, in the module or in its graph.

Shapes: B examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from fitserve_contract.datatypes import datatype_of
from fitserve_contract.joinability.proof import prove_rows
from fitserve_contract.joinability.rows import beside_copies, rows_of
from fitserve_contract.joinability.trial import hostile_rows
from fitserve_exporters.candidate.candidate import Arrays, Candidate, Tolerance, numpy_dtype
from fitserve_exporters.errors import ExportError
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.sampling import sampled_indices
from fitserve_exporters.verification.tolerance import bounds_of, is_exact
from fitserve_exporters.verification.truth import Truth

Run: TypeAlias = Callable[[Arrays], Arrays | None]
"""Runs a batch; None where the values are refused."""

_PROBE_ROWS: Final = 4
_WIDENING: Final = 4.0
"""A row is compared with itself, both rounded: twice the bound of either, and as much again for luck."""

_BUDGET_S: Final = 60.0
_LEAST_KINDS: Final = 4
"""Kinds of hostile neighbours that are tried however long it takes."""


@dataclass(frozen=True, slots=True)
class RowRecord:
    """What is known of the rows of a version.

    Args:
        unproved: Why the graph does not prove them independent, naming the node; empty where it does.
        seen: How a row was seen to depend on others; empty where none was.
        probe_count: Rows that were tried.
        hostile_count: Kinds of neighbours that the module took.
    """

    unproved: str
    seen: str
    probe_count: int
    hostile_count: int

    def to_json(self) -> dict[str, Any]:
        """Returns the record as the manifest writes it."""
        return {
            "is_proved_by_graph": not self.unproved,
            "unproved": self.unproved or None,
            "seen_to_depend": self.seen or None,
            "probe_count": self.probe_count,
            "hostile_count": self.hostile_count,
        }


def prove_row_independence(
    candidate: Candidate, content: bytes, sessions: Sequence[OrtSession], truth: Truth
) -> RowRecord:
    """Proves it, tries it out, and refuses a module whose rows were seen to depend on each other.

    Args:
        candidate: Its `allow_coupled_rows` accepts such a module; the version is then not joinable.
        content: The exported graph.
        sessions: Of it.
        truth: What the module answers.

    Raises:
        ExportError: a row depends on its neighbours, and that is not accepted; the message names the node.
    """
    unproved = prove_rows(content).problem
    trial = _Trial(candidate, truth)
    engines: list[tuple[str, Run]] = [("torch", truth.run), *((one.provider, _runner(one)) for one in sessions)]
    seen = next((f"in {name}, {found}" for name, run in engines if (found := trial.problem(run))), "")
    record = RowRecord(unproved, seen, trial.probe_count, trial.hostile_count)
    if not seen or (candidate.allow_coupled_rows and unproved):
        return record
    where = f"; in the graph: {unproved}" if unproved else ""
    cure = (
        "compute each row from its own values, as with dim=1 in place of dim=0, or accept a version that is never "
        "joined with allow_coupled_rows=True"
        if unproved
        else "the graph itself does not do so: take what mixes rows out, such as 0 * x.mean()"
        if seen.startswith("in torch")
        else "the graph does not show how: please report it with the module"
    )
    raise ExportError(
        f"rows depend on each other: {seen}{where}. The server joins rows of different callers, who would change each "
        f"other's answers; {cure}"
    )


class _Trial:
    """Rows and their neighbours. Keeps what both engines need."""

    def __init__(self, candidate: Candidate, truth: Truth) -> None:
        self._truth = truth
        self._tolerance: Tolerance = candidate.tolerance
        indices = sampled_indices(candidate, _PROBE_ROWS)
        self._probes = [candidate.held_out.rows(indices[place : place + 1]) for place in range(len(indices))]
        datatypes = {spec.name: datatype_of(numpy_dtype(spec.dtype)) for spec in candidate.inputs}
        self._hostile = hostile_rows(self._probes[0], datatypes)
        self.probe_count = len(self._probes)
        self.hostile_count = 0

    def problem(self, run: Run) -> str:
        """Returns how a row depends on others; empty where none does."""
        end_s = time.monotonic() + _BUDGET_S
        taken = 0
        for number, (what, batch, own) in enumerate(self._batches(run)):
            if number > _LEAST_KINDS and time.monotonic() > end_s:
                break
            answers = run(batch)
            if answers is None:
                continue
            taken += 1
            size = len(next(iter(batch.values())))
            for place, probe in own.items():
                if problem := self._row_problem(run, answers, (place, size), probe):
                    return f"a row {what} is answered otherwise than beside copies of itself: {problem}"
        self.hostile_count = max(self.hostile_count, taken - 1)
        return next((problem for probe in self._probes if (problem := self._size_problem(run, probe))), "")

    def _batches(self, run: Run) -> Iterator[tuple[str, Arrays, dict[int, Arrays]]]:
        """Yields batches: what is beside, the batch, and by position the probe rows in it."""
        yield "beside other examples", _stacked(self._probes), dict(enumerate(self._probes))
        first, last = self._probes[0], self._probes[-1]
        scaled = [{name: _scaled(array, by) for name, array in last.items()} for by in (1e3, -1e-3)]
        for hostile in (*scaled, *self._hostile):
            if run(hostile) is not None:
                yield f"beside {_named(hostile)}", _stacked([first, hostile, last]), {0: first, 2: last}

    def _row_problem(self, run: Run, answers: Arrays, where: tuple[int, int], probe: Arrays) -> str:
        place, size = where
        copies = run(beside_copies(probe, size))
        if copies is None:
            return ""
        return self._difference(rows_of(copies, place, 1), rows_of(answers, place, 1), probe)

    def _size_problem(self, run: Run, probe: Arrays) -> str:
        """Compares a row alone with the same row beside copies: a division by the number of rows shows."""
        alone, copies = run(probe), run(beside_copies(probe, 3))
        if alone is None or copies is None:
            return ""
        problem = self._difference(alone, rows_of(copies, 2, 1), probe)
        return f"a row alone is answered otherwise than beside copies of itself: {problem}" if problem else ""

    def _difference(self, expected: Arrays, found: Arrays, probe: Arrays) -> str:
        for name, one in expected.items():
            other = found[name]
            if one.shape != other.shape:
                return f"output '{name}': expected shape {one.shape}, got {other.shape}"
            if one.dtype.kind == "f" and np.array_equal(one, other, equal_nan=True):
                continue
            wide = one if is_exact(one) else one.astype(np.float64)
            bounds = bounds_of(one, wide, self._tolerance, self._truth.features.get(name))
            bounds = bounds.widened(bounds.allowed, _WIDENING)
            gap = differences(other, one, wide, bounds)
            if gap.beyond_count and not is_exact(one):
                noise = self._truth.noise_of(probe)[name].reshape(-1)
                if len(noise) == one.size:  # else the row alone has another shape
                    gap = differences(other, one, wide, bounds.widened(noise, 2 * _WIDENING * self._tolerance.factor))
            if not gap.is_within:
                return f"output '{name}' moves by {gap.worst_error:.3g}" if gap.beyond_count else f"output '{name}'"
        return ""


def _runner(session: OrtSession) -> Run:
    def run(inputs: Arrays) -> Arrays | None:
        try:
            return session.run(inputs)
        except Exception:  # ONNX Runtime's exceptions share no base class below Exception: the values are refused
            return None

    return run


def _stacked(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _scaled(array: Any, factor: float) -> Any:
    with np.errstate(over="ignore"):
        return (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array


def _named(row: Arrays) -> str:
    """Names a neighbour for people by its values."""
    reals = [array for array in row.values() if array.dtype.kind == "f"]
    if any(np.isnan(array).any() for array in reals):
        return "one with NaN"
    if any(np.isinf(array).any() for array in reals):
        return "an infinite one"
    largest = max((float(np.abs(array).max(initial=0.0)) for array in reals), default=0.0)
    if reals:
        return f"one of values up to {largest:.0e}"
    return "one of other texts" if any(array.dtype.kind == "O" for array in row.values()) else "one of other integers"
