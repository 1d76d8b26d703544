"""Proves a variant: the same figures as the fp32 file, judged by what the variant is.

A variant that only orders sums otherwise is held to the fp32 tolerance. One that rounds is judged by the accuracy it
loses, and its measured error, widened, becomes the bound that a server replays its probe against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from fitserve_contract.tasks import TaskKind
from fitserve_exporters.candidate.candidate import Candidate, Tolerance
from fitserve_exporters.errors import VariantError
from fitserve_exporters.sessions import OrtSession
from fitserve_exporters.verification.judge import objections
from fitserve_exporters.verification.truth import Truth
from fitserve_exporters.verification.verify import Verification, verify

_WIDENING: Final = 4.0
_SCALE: Final = {
    TaskKind.CLASSIFICATION: "accuracy",
    TaskKind.TOKEN_CLASSIFICATION: "accuracy",
    TaskKind.MULTI_LABEL: "macro_f1",
    TaskKind.REGRESSION: "r_squared",
}

LARGEST_ERROR_SHARE: Final = 0.02
"""Without a task that can be scored: so much of the largest output may be off."""


def prove_exact(candidate: Candidate, session: OrtSession, truth: Truth) -> Verification:
    """Verifies a variant that rounds no more than the fp32 file.

    Args:
        candidate: What it was made from.
        session: The variant.
        truth: What the candidate's module answers.

    Raises:
        VariantError: its answers are further off than fp32 may be.
        NotVerifiedError: it does not run.
    """
    verification = verify(candidate, [session], truth)
    reasons = objections(verification)
    if reasons:
        raise VariantError("; ".join(reasons))
    return verification


def prove(candidate: Candidate, session: OrtSession, truth: Truth) -> Verification:
    """Verifies a variant that rounds, with the bound that it was measured to need.

    Args:
        candidate: What it was made from.
        session: The variant.
        truth: What the candidate's module answers.

    Raises:
        NotVerifiedError: it does not run.
    """
    return verify(replace(candidate, tolerance=_measured_tolerance(candidate, session, truth)), [session], truth)


def loss_objections(verification: Verification, candidate: Candidate) -> list[str]:
    """Lists why a variant that rounds may not be published; empty where it may."""
    figures = verification.providers[0]
    allowed = candidate.tolerance.variant_loss
    loss = metric_loss(candidate, verification.torch_metrics, figures.metrics)
    if loss is not None:
        metric = _SCALE[candidate.task.kind] if candidate.task else ""
        if loss <= allowed:
            return []
        return [f"{metric}: expected at most {100 * allowed:g} points lost, got {100 * loss:.3g}"]
    if figures.agreement is not None:
        changed = 1 - figures.agreement.same_count / figures.agreement.example_count
        found = f"answers: expected at most {100 * allowed:g} % others, got {changed:.2%}"
        return [] if changed <= allowed else [found]
    return [
        f"output '{name}': expected an error of at most {LARGEST_ERROR_SHARE:g} of its largest value, got {share:.3g}"
        for batch in figures.batches[-1:]
        for name, output in batch.outputs.items()
        if (share := output.ort_max_error / max(output.largest, 1e-30)) > LARGEST_ERROR_SHARE
    ]


def metric_loss(
    candidate: Candidate, torch_metrics: Mapping[str, Any] | None, variant_metrics: Mapping[str, Any] | None
) -> float | None:
    """Gives what a variant loses of the task's metric, as a fraction, negative for a gain; None without a metric."""
    if candidate.task is None or not torch_metrics or not variant_metrics:
        return None
    name = _SCALE[candidate.task.kind]
    before, after = torch_metrics.get(name), variant_metrics.get(name)
    return None if before is None or after is None else float(before) - float(after)


def _measured_tolerance(candidate: Candidate, session: OrtSession, truth: Truth) -> Tolerance:
    largest_batch = truth.batches[-1]
    exact, found = largest_batch.fp64[0], session.run(largest_batch.inputs[0])
    # A non-finite answer stays in the figures of `verify`; here it would make the bound one that nothing exceeds.
    gaps = [np.abs(found[name].astype(np.float64) - exact[name]) for name in candidate.output_names]
    largest = max(float(np.where(np.isfinite(gap), gap, 0.0).max(initial=0.0)) for gap in gaps)
    return replace(
        candidate.tolerance,
        is_measured=True,
        atol=max(_WIDENING * largest, candidate.tolerance.atol),
        reason=f"{_WIDENING:g} times the largest error of this variant on {largest_batch.batch_size} examples, "
        "as its rounding depends on the batch and on the processor; it is judged by the accuracy that it loses",
    )
