"""Proves at which sizes of its free axes a graph answers as torch does.

Guards of torch.export say where the graph may hold, running both says where it does. From the traced size the range
grows as far as the guards hold; a size at which one fails is tried out, as torch takes an axis of 1 for a constant
without need. The smallest size, an odd one, the example's and several larger ones are then run on each provider.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Final

import numpy as np

from fitserve_contract.axis_ranges import AxisRange
from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.graph.assumptions import Assumptions, FreeSize
from fitserve_exporters.reference import reference_of
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.texts import first_line
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.noise import Noise
from fitserve_exporters.verification.sampling import sampled_indices
from fitserve_exporters.verification.tolerance import bounds_of, is_exact

LARGER: Final = (2, 3, 4)
"""Multiples of the example's size that are run where there is no bound."""

LARGEST_RUN: Final = 8192
"""Sizes up to a bound of the module's own are run up to this one, or to 4 times the example's."""

_ROWS: Final = 4
_MOST_ELEMENTS: Final = 200_000
"""Of one input; above this one row is run instead of several."""

_LOOKED_AT: Final = 512
"""Guards are asked at every size up to this one, or to 4 times the example's."""

_FAR: Final = (2**10, 2**14, 2**20)
_MOST_TRIED: Final = 4
"""Sizes at which guards fail that are tried out on either side."""

_BATCHES: Final = (*range(1, 34), 64, 100, 256)
"""Numbers of examples at which guards are asked."""

_LARGEST_STEP: Final = 64


@dataclass(frozen=True, slots=True)
class SizeRange:
    """What was proved of one free size.

    Args:
        size: Which.
        minimum: Smallest.
        maximum: Largest; None where no bound was found.
        step: Sizes are so far apart.
        verified: Sizes that were run.
        note: Why the module takes no other sizes; empty where that is not known.
    """

    size: FreeSize
    minimum: int
    maximum: int | None
    step: int
    verified: tuple[int, ...]
    note: str = ""

    def axis_ranges(self) -> Iterator[tuple[str, AxisRange]]:
        """Yields the range of each axis of this size, with its input."""
        for index, ((name, axis), offset) in enumerate(self.size.members):
            low, high = self.minimum + offset, None if self.maximum is None else self.maximum + offset
            same = self.size.place if index else None
            remainder = (self.size.traced + offset) % self.step
            yield name, AxisRange(axis, low, high, self.step, remainder, same, offset if index else 0)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as the manifest writes it."""
        bound = {"minimum": self.minimum, "maximum": self.maximum, "step": self.step}
        return {"axis": self.size.name, **bound, "verified": list(self.verified), "note": self.note or None}


def prove_sizes(
    candidate: Candidate, sessions: Sequence[OrtSession], assumptions: Assumptions
) -> tuple[Candidate, tuple[SizeRange, ...]]:
    """Finds the sizes of every free axis at which each session answers as torch does.

    Args:
        candidate: Its held-out values are cut and repeated to other sizes.
        sessions: The exported model on each execution provider.
        assumptions: Of its graph.

    Returns:
        The candidate with the ranges in its inputs, and the record.

    Raises:
        NotVerifiedError: a session answers otherwise at a size at which the guards hold.
        ExportError: the sizes of axes depend on each other or on the number of examples, or the module takes none but
            the example's.
    """
    if not assumptions.sizes and not assumptions.guards:
        return candidate, ()
    proof = _Proof(candidate, sessions, assumptions)
    proof.check_batches()
    found = tuple(proof.range_of(size) for size in assumptions.sizes)
    proof.check_together(found)
    ranges: dict[str, list[AxisRange]] = {spec.name: [] for spec in candidate.inputs}
    for one in found:
        for name, axis_range in one.axis_ranges():
            ranges[name].append(axis_range)
    inputs = tuple(replace(spec, ranges=tuple(ranges[spec.name])) for spec in candidate.inputs)
    return replace(candidate, inputs=inputs), found


class _Proof:
    """Runs torch and the sessions at chosen sizes. Owns copies of the module."""

    def __init__(self, candidate: Candidate, sessions: Sequence[OrtSession], assumptions: Assumptions) -> None:
        self._candidate = candidate
        self._sessions = sessions
        self._assumptions = assumptions
        self._reference = reference_of(candidate)
        self._rows = sampled_indices(candidate, max(_ROWS, candidate.held_out.example_count))

    def range_of(self, size: FreeSize) -> SizeRange:
        """Finds the range of one size, the others as traced."""
        step = self._step(size)
        low = self._end(size, -step)[0] or 1
        high, why = self._end(size, step)
        passed: list[int] = []
        for length in self._chosen(size, step, low, high):
            problem, is_torch = self._problem({size.name: length})
            if not problem:
                passed.append(length)
            elif not is_torch:
                raise NotVerifiedError(_beyond(size, length, problem))
            elif length > size.traced:
                high, why = self._last_that_runs(size, step, max(passed, default=size.traced), length), problem
                passed.append(high)
                break
            else:
                low, passed = length + step, []
        return SizeRange(size, low, high, step, tuple(sorted(set(passed))), why)

    def check_batches(self) -> None:
        """Runs the first numbers of examples at which a guard fails: any number has to do."""
        failing = (count for count in _BATCHES if not self._assumptions.hold({}, count))
        for count in islice(failing, _MOST_TRIED):
            problem, _ = self._problem({}, count)
            if problem:
                raise ExportError(
                    f"export: expected a module that does the same for any number of examples, but with {count}: "
                    f"{problem}; a branch on x.shape[0] has to go"
                )

    def check_together(self, ranges: Sequence[SizeRange]) -> None:
        """Runs all sizes at their smallest and largest in turn, where there are several."""
        if len(ranges) < 2:
            return
        ends = {one.size.name: (min(one.verified), max(one.verified)) for one in ranges}
        corners = [{name: pair[place] for name, pair in ends.items()} for place in (0, 1)]
        for name in ends:
            corners.append({other: pair[other == name] for other, pair in ends.items()})
            corners.append({other: pair[other != name] for other, pair in ends.items()})
        for chosen in {tuple(corner.items()): corner for corner in corners}.values():
            problem, _ = self._problem(chosen)
            if problem:
                where = ", ".join(f"'{name}' {length}" for name, length in chosen.items())
                raise ExportError(
                    f"free_axes: expected the sizes of axes to be free of each other, but with {where}: {problem}; "
                    "leave one of them out of free_axes, or give axes of one size one name"
                )

    def _step(self, size: FreeSize) -> int:
        """Finds the distance of the sizes that the guards allow, from the traced one."""
        for step in range(1, _LARGEST_STEP + 1):
            if self._holds(size, size.traced + step) or self._holds(size, size.traced - step):
                return step
        raise ExportError(
            f"free_axes: axis '{size.name}': expected several sizes to do, but the module is exported for "
            f"{size.traced} alone; leave it out of free_axes"
        )

    def _end(self, size: FreeSize, step: int) -> tuple[int | None, str]:
        """Walks from the traced size as far as the graph holds; the last size, and why there is no other."""
        last, tried, length = size.traced, 0, size.traced + step
        limit = max(_LOOKED_AT, max(LARGER) * size.traced)
        while length <= limit and self._is_possible(size, length):
            if not self._holds(size, length):
                problem = self._problem({size.name: length})[0] if tried < _MOST_TRIED else "torch.export rules it out"
                tried += 1
                if problem:
                    return last, f"size {length}: {problem}"
            last, length = length, length + step
        if step < 0:
            return last, ""
        far = [last + abs(step) * factor for factor in _FAR]
        beyond = next((length for length in far if not self._holds(size, length)), None)
        if beyond is None:
            return None, ""
        return self._last_that_holds(size, last, beyond, step), "torch.export rules out larger sizes"

    def _last_that_holds(self, size: FreeSize, low: int, high: int, step: int) -> int:
        while high - low > step:
            middle = low + (high - low) // (2 * step) * step
            low, high = (middle, high) if self._holds(size, middle) else (low, middle)
        return low

    def _last_that_runs(self, size: FreeSize, step: int, low: int, high: int) -> int:
        """Finds the largest size that the module itself takes, between one that it does and one that it does not."""
        while high - low > step:
            middle = low + (high - low) // (2 * step) * step
            problem, is_torch = self._problem({size.name: middle})
            if problem and not is_torch:
                raise NotVerifiedError(_beyond(size, middle, problem))
            low, high = (low, middle) if problem else (middle, high)
        return low

    def _chosen(self, size: FreeSize, step: int, low: int, high: int | None) -> list[int]:
        """Chooses the sizes that are run, ascending: the smallest, the example's, odd ones, and larger ones."""
        most = max(LARGER) * size.traced
        top = most if high is None else min(high, max(LARGEST_RUN, most))
        wanted = {low, low + step, size.traced - step, size.traced, size.traced + step, top, (size.traced + top) // 2}
        wanted |= {factor * size.traced for factor in LARGER}
        wanted |= {factor * size.traced + 1 for factor in LARGER[:1]}
        snapped = {size.traced + (length - size.traced) // step * step for length in wanted}
        return sorted(length for length in snapped if low <= length <= top)

    def _holds(self, size: FreeSize, length: int) -> bool:
        return self._is_possible(size, length, least=2) and self._assumptions.hold({size.name: length})

    def _is_possible(self, size: FreeSize, length: int, least: int = 1) -> bool:
        """Tells whether no axis gets shorter than that; torch.export takes an axis of 1 for a constant."""
        return all(length + offset >= least for _, offset in size.members)

    def _problem(self, chosen: Mapping[str, int], batch: int | None = None) -> tuple[str, bool]:
        """Runs both at some sizes: what is wrong, and whether it is torch that does not run; empty where they agree."""
        error = ""
        for inputs in self._inputs(chosen, batch):
            try:
                eager = self._reference.fp32(inputs)
            except ExportError as failed:
                cause = failed.__cause__
                error = error or f"the module fails: {first_line(cause)[:200] if cause else failed}"
                continue
            if name := self._name_of_nan(eager):
                return f"output '{name}' of the module is NaN", True
            return self._disagreement(inputs, eager), False
        return error, True

    def _name_of_nan(self, eager: Arrays) -> str:
        checked = (name for name in eager if name not in self._candidate.allow_nan)
        return next((name for name in checked if eager[name].dtype.kind == "f" and np.isnan(eager[name]).any()), "")

    def _disagreement(self, inputs: Arrays, eager: Arrays) -> str:
        exact = self._reference.fp64(inputs)
        for session in self._sessions:
            try:
                served = session.run(inputs)
            except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
                return f"{session.provider} fails where torch runs: {first_line(error)[:300]}"
            for name in eager:
                if served[name].shape != eager[name].shape:
                    return f"output '{name}': expected shape {eager[name].shape}, got {served[name].shape}"
                if problem := self._difference(name, inputs, served[name], (eager[name], exact)):
                    return f"{session.provider}, {problem}"
        return ""

    def _difference(self, name: str, inputs: Arrays, served: Array, torch_has: tuple[Array, Arrays]) -> str:
        eager, exact = torch_has
        tolerance = self._candidate.tolerance
        bounds = bounds_of(eager, exact[name], tolerance)
        found = differences(served, eager, exact[name], bounds)
        if found.beyond_count and not is_exact(eager):
            noise = self._noise.of(inputs, exact)[name].reshape(-1)
            found = differences(served, eager, exact[name], bounds.widened(noise, 2 * tolerance.factor))
        if found.is_within:
            return ""
        count = found.beyond_count + found.sentinel_mismatch_count
        return (
            f"output '{name}': expected torch's answer within {found.worst_tolerance:.3g}, got {found.worst_error:.3g} "
            f"from it; {count} of {found.element_count} elements are others"
        )

    @cached_property
    def _noise(self) -> Noise:
        return Noise(self._candidate, runs_in_float64=not self._reference.fp64_gap)

    def _inputs(self, chosen: Mapping[str, int], batch: int | None) -> Iterator[Arrays]:
        """Cuts or repeats held-out values to some sizes; then again with integers that fit the smallest new size.

        Such integers may be lengths or places in an axis that is shorter now.
        """
        shapes = self._assumptions.shapes_at(chosen)
        largest = max(int(np.prod(shape[1:])) for shape in shapes.values())
        count = batch or (_ROWS if largest * _ROWS <= _MOST_ELEMENTS else 1)
        arrays = {name: self._resized(name, shape[1:], count) for name, shape in shapes.items()}
        yield arrays
        if not chosen:
            return
        least = min(chosen.values())
        for most in (least, least - 1):
            yield {
                name: np.clip(array, None, most).astype(array.dtype)
                if array.dtype.kind in "iu" and shapes[name][1:] == self._assumptions.shapes[name][1:]
                else array
                for name, array in arrays.items()
            }

    def _resized(self, name: str, shape: tuple[int, ...], count: int) -> Array:
        """Takes rows of an input; where an axis is longer now, the values of other rows go on at the same places."""
        values = self._candidate.held_out.inputs[name]
        places = np.ix_(*(np.arange(length) for length in shape))
        rows = np.arange(count).reshape(-1, *(1 for _ in shape))
        for place, length in zip(places, values.shape[1:], strict=True):
            rows = rows + place // length
        within = (place % length for place, length in zip(places, values.shape[1:], strict=True))
        return np.ascontiguousarray(values[(self._rows[rows % len(self._rows)], *within)])


def _beyond(size: FreeSize, length: int, problem: str) -> str:
    return f"axis '{size.name}' at size {length}: {problem}; leave the axis out of free_axes, or do without what fails"
