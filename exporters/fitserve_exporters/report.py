"""What an export tells people: plain text, aligned, no colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fitserve_exporters.candidate.candidate import EAGER_TORCH
from fitserve_exporters.texts import of_reference
from fitserve_exporters.variants import Variant, speed_text
from fitserve_exporters.verification.answers import Agreement, listed
from fitserve_exporters.verification.verify import ProviderFigures, Verification

if TYPE_CHECKING:
    from fitserve_exporters.publishing.published_version import PublishedVersion

_COLUMNS: Final = (
    *("output", "batch", "examples", "max|ort-torch|", "mean", "ULPs", "rel"),
    *("max|ort-f64|", "max|torch-f64|", "worst", "allowed"),
)


def published_text(published: PublishedVersion) -> str:
    """Writes what was exported, the figures, and where it lies."""
    facts = published.manifest.onnx
    head = (
        f"{published.model}: exported as ONNX opset {facts['opset'].get('ai.onnx')}, IR {facts['ir_version']}, "
        f"{facts['node_count']} nodes, {facts['parameter_count']:,} parameters, {facts['bytes']:,} bytes"
    )
    place = f"published {published.model} version {published.version} in {published.folder}"
    variants = [line for variant in published.variants for line in _variant_lines(variant)]
    notes = [f"note: {note}" for note in facts.get("notes", [])]
    for spec in published.manifest.inputs:
        notes += [f"sizes: input '{spec.name}': {text}" for text in spec.range_texts()]
    return "\n".join([head, *notes, verification_text(published.verification), *variants, place])


def _variant_lines(variant: Variant) -> list[str]:
    if variant.refusal or variant.verification is None:
        return [f"variant {variant.name}: not published: {variant.refusal}"]
    head = f"variant {variant.name}: {variant.file}, {len(variant.content):,} bytes, {speed_text(variant.speed)}"
    figures, torch_metrics = variant.verification.providers[0], variant.verification.torch_metrics
    metrics = _metric_lines(torch_metrics, figures.metrics) if torch_metrics and figures.metrics else []
    return [head, *_agreement_lines(figures.agreement), *metrics]


def verification_text(verification: Verification) -> str:
    """Writes the figures of a verification."""
    data = verification.data
    lines = [f"verified against eager torch on {data['example_count']:,} held-out examples: {data['source']}"]
    if verification.fp64_gap:
        lines.append(f"no float64 reference: {verification.fp64_gap}")
    for figures in verification.providers:
        lines += _provider_lines(figures)
        if figures.metrics and verification.torch_metrics:
            lines += _metric_lines(verification.torch_metrics, figures.metrics)
    text = "\n".join(lines)
    return text if verification.reference == EAGER_TORCH else of_reference(text)


def _provider_lines(figures: ProviderFigures) -> list[str]:
    rows: list[Sequence[str]] = [_COLUMNS]
    for batch in figures.batches:
        for name, output in batch.outputs.items():
            errors = (output.ort_max_error, output.torch_max_error, output.worst_error, output.worst_tolerance)
            spread = (str(output.max_ulps), f"{output.max_rel_diff:.1e}")
            diffs = (f"{output.max_abs_diff:.2e}", f"{output.mean_abs_diff:.2e}", *spread)
            rows.append((name, str(batch.batch_size), str(batch.example_count), *diffs, *(f"{e:.2e}" for e in errors)))
    return [f"{figures.provider}:", *table(rows), *_agreement_lines(figures.agreement)]


def _agreement_lines(agreement: Agreement | None) -> list[str]:
    if agreement is None:
        return []
    lines = [f"  answers: {agreement.same_count:,} of {agreement.example_count:,} the same as torch's"]
    if agreement.ties:
        changed = f", {len(agreement.tie_differences)} answered differently" if agreement.tie_differences else ""
        lines.append(f"  ties within the tolerance: {len(agreement.ties)}{changed}: examples {listed(agreement.ties)}")
    if agreement.differences:
        lines.append(f"  answers that differ beyond ties: examples {listed(agreement.differences)}")
    return lines


def _metric_lines(torch_metrics: Mapping[str, Any], ort_metrics: Mapping[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = [("", "torch", "onnxruntime", "95 % interval")]
    for name in torch_metrics:
        if name.endswith(("_count", "_interval_95", "recalls")):
            continue
        interval = ort_metrics.get(f"{name}_interval_95")
        between = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        rows.append((name, _metric(torch_metrics, name), _metric(ort_metrics, name), between))
    return table(rows)


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    value = metrics[name]
    if value is None:
        return "-"
    count = metrics.get("correct_count" if name == "accuracy" else f"{name}_count")
    return f"{value:.6g}" + (f" ({count:,} of {metrics['example_count']:,})" if count is not None else "")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns rows in columns, the first to the left, the others to the right, each line indented by two spaces."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip
