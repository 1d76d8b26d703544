"""How many times as fast as the fp32 file a variant is, on this machine: in turns, pair by pair.

Shapes: R rounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime

from fitserve_exporters.candidate.candidate import Arrays, Candidate
from fitserve_exporters.sessions import CPU, fed
from fitserve_exporters.verification.sampling import sampled_indices

BATCH_SIZES: Final = (1, 8, 32)

_ROUNDS: Final = 15
_CALLS_S: Final = 0.02
"""So long one side is called before the other has its turn; at least one call."""

_WARM_UP_CALLS: Final = 3
_RESAMPLES: Final = 1000


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """Time of the fp32 file over that of the variant, above 1 the variant is faster.

    Args:
        batch_size: Examples in a call.
        estimate: Median over the rounds.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
    """

    batch_size: int
    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Gives the figures as the manifest writes them."""
        return {
            "batch_size": self.batch_size,
            "ratio": round(self.estimate, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
        }


def speed_ratios(fp32: bytes, variant: bytes, candidate: Candidate, provider: str = CPU) -> tuple[SpeedRatio, ...]:
    """Measures the ratio at batch 1, 8 and 32, or at as many as there are examples."""
    sessions = [_session(content, provider) for content in (fp32, variant)]
    sizes = sorted({min(size, candidate.held_out.example_count) for size in BATCH_SIZES})
    return tuple(_ratio(sessions, candidate, size) for size in sizes)


def is_faster(ratios: Sequence[SpeedRatio], least: float = 1.0) -> bool:
    """Tells whether `auto` publishes a variant.

    Args:
        ratios: At least one.
        least: 1 asks for faster over all: the geometric mean of the lower ends of the intervals is above it. More is
            asked at every size: the median ratio, which the server compares too.
    """
    if least == 1.0:
        return bool(np.prod([ratio.low for ratio in ratios]) > 1.0)
    return min(ratio.estimate for ratio in ratios) >= least


def _session(content: bytes, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Threads that spin after a run would slow the other side's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(content, options, providers=[provider])


def _ratio(sessions: Sequence[Any], candidate: Candidate, size: int) -> SpeedRatio:
    inputs = fed(candidate.held_out.rows(sampled_indices(candidate, size)))
    for session in sessions:
        for _ in range(_WARM_UP_CALLS):
            session.run(None, inputs)
    times_s = np.array([[_call_s(session, inputs) for session in sessions] for _ in range(_ROUNDS)])
    ratios = times_s[:, 0] / times_s[:, 1]
    picks = np.random.default_rng(candidate.seed).integers(0, _ROUNDS, (_RESAMPLES, _ROUNDS))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return SpeedRatio(size, float(np.median(ratios)), float(low), float(high))


def _call_s(session: Any, inputs: Arrays) -> float:
    """Gives the least time of a call within one turn: what else runs on the machine only ever adds."""
    least_s, end_s = float("inf"), time.perf_counter() + _CALLS_S
    while least_s == float("inf") or time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        session.run(None, inputs)
        least_s = min(least_s, time.perf_counter() - begin_s)
    return least_s
