"""Decides whether a verification may be published."""

from __future__ import annotations

from fitserve_exporters.verification.answers import listed
from fitserve_exporters.verification.differences import Differences
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
    text = f"expected max|onnxruntime - float64| <= {output.tolerance:.3g}, got {output.ort_max_error:.3g}"
    if output.nonfinite_mismatch_count:
        text += f", and {output.nonfinite_mismatch_count} NaN or infinities on one side alone"
    return text
