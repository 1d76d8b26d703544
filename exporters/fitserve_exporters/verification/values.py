"""Whether the answers hold for values that the held-out set does not have: all zeros, other signs, a thousandfold.

A graph may compute log(sigmoid(x)) where torch computes logsigmoid(x): right for each held-out example, and -inf for
the first caller with x = -200. So a few held-out rows are changed, and run in torch and in ONNX Runtime. Rounding says
little about such rows: they must be finite where torch is, and off by less than a hundredth of the feature's scale or
what the module itself moves by one rounding, see `noise`.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fitserve_exporters.candidate.candidate import Array, Arrays, Candidate
from fitserve_exporters.candidate.numpy_reference import NumpyReference
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.sampling import sampled_indices
from fitserve_exporters.verification.truth import Truth

_ROWS: Final = 4
_SHARE: Final = 1e-2
_WIDENING: Final = 32.0
_LARGEST: Final = 1e30
"""Torch's own numbers above it are near the end of fp32, where the order of a sum decides."""

_CHANGES: Final[Mapping[str, float]] = {
    "zeros": 0.0,
    "other signs": -1.0,
    "a thousandfold": 1e3,
    "a thousandfold with other signs": -1e3,
}
_UNLIKE: Final = ("other signs", "zeros")
"""What is compared in size too; a thousandfold input is for overflow alone."""


@dataclass(frozen=True, slots=True)
class ValueRecord:
    """What was tried.

    Args:
        tried: Kinds of values that the module took.
        nan: How inputs with NaN are answered otherwise than in torch; empty where they are not.
        beyond: What differs, where the reference is no module of torch; such a file is published as it is.
    """

    tried: tuple[str, ...]
    nan: str
    beyond: str

    def to_json(self) -> dict[str, Any]:
        """Returns the record as the manifest writes it."""
        return {"tried": list(self.tried), "nan": self.nan or None, "differs": self.beyond or None}


def prove_values(candidate: Candidate, sessions: Sequence[OrtSession], truth: Truth) -> ValueRecord:
    """Runs rows of other values than the held-out set's.

    Args:
        candidate: What the graph has to answer as.
        sessions: Of the graph.
        truth: What the module answers.

    Raises:
        NotVerifiedError: finite inputs are answered by infinity or NaN where torch answers with numbers, or by other
            numbers.
    """
    rows = candidate.held_out.rows(sampled_indices(candidate, _ROWS))
    tried, beyond = [], ""
    for what, batch in _changed(rows):
        expected = truth.run(batch)
        if expected is None:
            continue
        tried.append(what)
        for session in sessions:
            found = _answers(session, batch)
            problem = found and _problem(what, batch, (expected, found), truth)
            if problem:
                beyond = beyond or f"{session.provider}, {problem}"
    if beyond and not isinstance(candidate.module, NumpyReference):
        raise NotVerifiedError(
            f"{beyond}; not published: the graph computes this otherwise than torch. Write it with functions that do "
            "not overflow, as logsumexp and softplus, or without those that differ there"
        )
    return ValueRecord(tuple(tried), _nan_problem(rows, sessions, truth), beyond)


def _changed(rows: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yields the rows with all real inputs changed; nothing where there are none, or only some of half precision."""
    if not any(array.dtype.kind == "f" and array.dtype.itemsize >= 4 for array in rows.values()):
        return
    for what, factor in _CHANGES.items():
        with np.errstate(over="ignore", invalid="ignore"):
            yield what, {name: _times(array, factor) for name, array in rows.items()}


def _times(array: Array, factor: float) -> Array:
    is_changed = array.dtype.kind == "f" and array.dtype.itemsize >= 4
    return np.asarray(array * array.dtype.type(factor)) if is_changed else array


def _answers(session: OrtSession, batch: Arrays) -> Arrays | None:
    try:
        return session.run(batch)
    except Exception:  # ONNX Runtime's exceptions share no base class below Exception: the caller is told, too
        return None


def _problem(what: str, batch: Arrays, answers: tuple[Arrays, Arrays], truth: Truth) -> str:
    expected, found = answers
    for name, one in expected.items():
        other = found[name]
        if one.dtype.kind != "f" or one.dtype.itemsize < 4 or one.shape != other.shape:
            continue
        is_lost = (np.abs(one) < _LARGEST) & ~np.isfinite(other)
        if is_lost.any():
            return (
                f"output '{name}': inputs of {what} are answered by {other[is_lost][0]}, by torch {one[is_lost][0]:.6g}"
            )
        if what not in _UNLIKE:
            continue
        gaps, allowed = _gaps(one, other), np.full(one.shape, _SHARE * _scale(truth, name, one))
        if (gaps > allowed).any() and (noise := truth.noise_of(batch)[name]).shape == one.shape:
            place = int(np.argmax(gaps - np.maximum(allowed, _WIDENING * noise)))
            if gaps.flat[place] > max(allowed.flat[place], _WIDENING * noise.flat[place]):
                return (
                    f"output '{name}': inputs of {what} are answered by {other.flat[place]:.6g}, "
                    f"by torch {one.flat[place]:.6g}"
                )
    return ""


def _gaps(one: Array, other: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return np.where(np.isfinite(gaps) & (np.abs(one) < _LARGEST), gaps, 0.0)


def _scale(truth: Truth, name: str, one: Array) -> float:
    """Returns the root mean square of an output, over the held-out rows or these, whichever is larger."""
    numbers = [array[np.isfinite(array) & (np.abs(array) < _LARGEST)] for array in
               (one, *(batch[name] for batch in truth.batches[-1].fp32))]  # fmt: skip
    return max((float(np.sqrt(np.mean(part.astype(np.float64) ** 2))) for part in numbers if part.size), default=0.0)


def _nan_problem(rows: Arrays, sessions: Sequence[OrtSession], truth: Truth) -> str:
    """Says which outputs hide NaN of the inputs, as ONNX's maxima do and torch's do not."""
    batch = {name: _with_nan(array) for name, array in rows.items()}
    expected = truth.run(batch)
    if expected is None or all(np.array_equal(batch[name], rows[name]) for name in rows):
        return ""
    for session in sessions:
        found = _answers(session, batch) or {}
        hidden = [
            name
            for name, one in expected.items()
            if name in found and one.dtype.kind == "f" and (np.isnan(one) & ~np.isnan(found[name])).any()
        ]
        if hidden:
            return f"{session.provider}: outputs {', '.join(hidden)} are numbers where torch answers NaN"
    return ""


def _with_nan(array: Array) -> Array:
    """Puts NaN into each row once, each elsewhere: a maximum that begins with NaN keeps it."""
    if array.dtype.kind != "f":
        return array
    changed, row = array.copy(), np.arange(len(array))
    flat = changed.reshape(len(array), -1)
    flat[row, (row + 1) % flat.shape[1]] = np.nan
    return changed
