"""The probe that a version carries, replayed before it is published, as whoever loads the version will replay it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from fitserve_contract.certificate import Probe
from fitserve_exporters.candidate.candidate import Array, Candidate, Tolerance
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.reference import TorchReference
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.sampling import LARGEST_BATCH, sampled_indices

MAX_PROBE_EXAMPLES: Final = 32
"""Replayed at every load of the version: enough to meet any weight, few enough to take milliseconds."""


def make_probe(candidate: Candidate) -> Probe:
    """Takes a probe from among the examples that the tolerance was computed on, spread over all of them."""
    inputs = candidate.held_out.rows(_probe_indices(candidate))
    names = tuple(spec.name for spec in candidate.inputs)
    reference = TorchReference(candidate.module, names, candidate.output_names)
    return Probe(inputs, reference.fp32(inputs), reference.fp64(inputs))


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
                gap = differences(answers[name], probe.fp32[name][:size], exact[:size], Tolerance())
                if gap.nonfinite_mismatch_count or gap.ort_max_error > tolerances[name]:
                    raise NotVerifiedError(
                        f"replay of the probe on {session.provider}: output '{name}' at batch size {size}: expected "
                        f"max|onnxruntime - float64| <= {tolerances[name]:.3g}, got {gap.ort_max_error:.3g}"
                    )


def _probe_indices(candidate: Candidate) -> Array:
    verified = sampled_indices(candidate, LARGEST_BATCH)
    places = np.linspace(0, len(verified) - 1, min(MAX_PROBE_EXAMPLES, len(verified)))
    return np.asarray(verified[places.round().astype(np.int64)])
