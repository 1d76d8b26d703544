"""Whether the graph in front of a module computes what its reference does, on texts that no held-out row has.

The front's own probes, such as unknown categories, empty cells and amounts that nobody wrote yet, run through the whole
graph and are held against the module behind the reference of the front, each element within its bound.
Shapes: B probes.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitserve_exporters.candidate.candidate import Candidate
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.differences import differences
from fitserve_exporters.verification.tolerance import bounds_of, is_exact
from fitserve_exporters.verification.truth import Truth


def prove_front(candidate: Candidate, sessions: Sequence[OrtSession], truth: Truth) -> int:
    """Runs the probes of a candidate's front; returns how many there are, 0 where it has no front.

    Raises:
        NotVerifiedError: a session fails on them or answers otherwise; the message names the output and the probe.
    """
    if candidate.front is None:
        return 0
    probes = candidate.front.probes(candidate.held_out.rows(truth.first))
    count = len(next(iter(probes.values())))
    eager, exact = truth.answers(probes)
    for session in sessions:
        try:
            served = session.run(probes)
        except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
            raise NotVerifiedError(f"{session.provider} fails on probes of the inputs: {str(error)[:400]}") from error
        for name, expected in eager.items():
            bounds = bounds_of(expected, exact[name], candidate.tolerance, truth.features.get(name))
            gap = differences(served[name], expected, exact[name], bounds)
            if gap.beyond_count and not is_exact(expected):
                noise = truth.noise_of(probes)[name].reshape(-1)
                bounds = bounds.widened(noise, 2 * candidate.tolerance.factor)
                gap = differences(served[name], expected, exact[name], bounds)
            if not gap.is_within:
                raise NotVerifiedError(
                    f"{session.provider}, output '{name}' on {count} probes of the inputs: expected the answers of the "
                    f"reference within {gap.worst_tolerance:.3g}, got {gap.worst_error:.3g} from it; "
                    f"{gap.beyond_count + gap.sentinel_mismatch_count} of {gap.element_count} elements are others"
                )
    return count
