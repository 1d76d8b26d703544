"""The probe that a version carries, replayed before it is published, as whoever loads the version will replay it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from fitserve_contract.certificate import Probe
from fitserve_exporters.candidate.candidate import Array, Candidate
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.reference import reference_of
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.sampling import LARGEST_BATCH, sampled_indices
from fitserve_exporters.verification.tolerance import Bounds, bounds_of

MAX_PROBE_EXAMPLES: Final = 32
"""Replayed at every load of the version: enough to meet any weight, few enough to take milliseconds."""


def make_probe(candidate: Candidate, most: int = MAX_PROBE_EXAMPLES) -> Probe:
    """Takes a probe of at most so many of the examples that the tolerance was computed on, spread over all of them."""
    inputs = candidate.held_out.rows(_probe_indices(candidate, most))
    reference = reference_of(candidate)
    fp32, fp64 = reference.fp32(inputs), reference.fp64(inputs)
    return Probe(inputs, fp32, {name: _replayed(fp32[name], exact, candidate) for name, exact in fp64.items()})


def check_replay(probe: Probe, sessions: Sequence[OrtSession], tolerances: Mapping[str, float]) -> None:
    """Holds the probe's answers, all at once and the first alone, against the tolerances of the manifest.

    Raises:
        NotVerifiedError: an answer is further off: the version could not be loaded where it was made.
    """
    count = len(next(iter(probe.inputs.values())))
    for session in sessions:
        for size in sorted({1, count}):
            answers = session.run({name: array[:size] for name, array in probe.inputs.items()})
            for name, exact in probe.fp64.items():
                eager = probe.fp32[name][:size]
                gap = differences(answers[name], eager, exact[:size], _same_bounds(eager, exact, tolerances[name]))
                if not gap.is_within:
                    raise NotVerifiedError(
                        f"replay of the probe on {session.provider}: output '{name}' at batch size {size}: expected "
                        f"max|onnxruntime - float64| <= {tolerances[name]:.3g}, got {gap.ort_max_error:.3g}"
                    )


def _replayed(eager: Array, exact: Array, candidate: Candidate) -> Array:
    """Puts torch's own masks in the place of those of float64, which may be another dtype's largest number."""
    is_sentinel = bounds_of(eager, exact, candidate.tolerance).is_sentinel.reshape(eager.shape)
    return np.where(is_sentinel, eager.astype(np.float64), exact)


def _same_bounds(eager: Array, exact: Array, tolerance: float) -> Bounds:
    """Makes the bounds of whoever loads the version: one number for all elements, what is not finite is the same."""
    is_finite = np.isfinite(eager.astype(np.float64)) & np.isfinite(exact[: len(eager)])
    flat = ~is_finite.reshape(-1)
    return Bounds(np.full(flat.size, tolerance), flat, np.zeros(flat.size, np.int64))


def _probe_indices(candidate: Candidate, most: int) -> Array:
    verified = sampled_indices(candidate, LARGEST_BATCH)
    places = np.linspace(0, len(verified) - 1, min(most, len(verified)))
    return np.asarray(verified[places.round().astype(np.int64)])
