"""How long ONNX Runtime takes for a batch, in process and on the machine that exports."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from fitserve_exporters.candidate.candidate import Candidate
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.sampling import batch_sizes, sampled_indices

WARM_UP_RUNS: Final = 3
"""Left out of the figures, unless the model is so slow that there are no others."""

MAX_RUNS: Final = 200
_BUDGET_S: Final = 0.2
_LEAST_FOR_P99: Final = 100
"""Fewer runs have no 99th percentile, only a maximum."""


def measure_latency(candidate: Candidate, session: OrtSession) -> list[dict[str, Any]]:
    """Times runs of the batch sizes that are verified, on held-out examples.

    Args:
        candidate: Its held-out set.
        session: The exported model on one execution provider.

    Returns:
        For each batch size `batch_size`, `run_count`, `p50_ms` and `p99_ms` (None below 100 runs).
    """
    return [_timed(candidate, session, size) for size in batch_sizes(candidate.held_out.example_count)]


def _timed(candidate: Candidate, session: OrtSession, size: int) -> dict[str, Any]:
    inputs = candidate.held_out.rows(sampled_indices(candidate, size))
    seconds: list[float] = []
    end_s = time.perf_counter() + _BUDGET_S
    while len(seconds) < WARM_UP_RUNS + MAX_RUNS and (not seconds or time.perf_counter() < end_s):
        begin_s = time.perf_counter()
        session.run(inputs)
        seconds.append(time.perf_counter() - begin_s)
    measured = seconds[WARM_UP_RUNS:] or seconds[-1:]
    p50, p99 = np.percentile(measured, [50, 99]) * 1e3
    return {
        "batch_size": size,
        "run_count": len(measured),
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4) if len(measured) >= _LEAST_FOR_P99 else None,
    }
