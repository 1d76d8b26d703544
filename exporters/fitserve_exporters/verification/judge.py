"""Decides whether a verification may be published."""

from __future__ import annotations

from fitserve_exporters.verification.answers import listed
from fitserve_exporters.verification.differences import Differences
from fitserve_exporters.verification.tolerance import SENTINEL_ULPS
from fitserve_exporters.verification.verify import ProviderFigures, Verification


def objections(verification: Verification) -> list[str]:
    """Lists what speaks against a version, one sentence each; empty where it may be published."""
    return [sentence for figures in verification.providers for sentence in _of_provider(figures)]


def _of_provider(figures: ProviderFigures) -> list[str]:
    found = [
        f"output '{name}' at batch size {batch.batch_size} on {figures.provider}: {_distance(output)}"
        for batch in figures.batches
        for name, output in batch.outputs.items()
        if not output.is_within
    ]
    agreement = figures.agreement
    if agreement and agreement.differences:
        found.append(
            f"answers on {figures.provider}: expected torch's on every example but ties, got others on "
            f"{len(agreement.differences)} of {agreement.example_count}: examples {listed(agreement.differences)}"
        )
    return found


def _distance(output: Differences) -> str:
    parts = []
    if output.beyond_count:
        error, allowed, feature = output.worst_error, output.worst_tolerance, output.worst_feature
        parts.append(
            f"expected |onnxruntime - float64| <= {allowed:.3g} in feature {feature}, got {error:.3g}; "
            f"{output.beyond_count} of {output.element_count} elements are beyond"
        )
    if output.sentinel_mismatch_count:
        parts.append(
            f"expected torch's own masks, infinities and NaN within {SENTINEL_ULPS} ULPs, got others in "
            f"{output.sentinel_mismatch_count} elements"
        )
    return "; ".join(parts)
