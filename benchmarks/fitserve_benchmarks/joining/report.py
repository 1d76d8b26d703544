"""The table of what joins, what does not and why, and its totals."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fitserve_benchmarks.joining.examine import Finding
from fitserve_benchmarks.joining.subjects import COUPLED, FILES, INDEPENDENT, LABELLED, ONNX_TESTS

LEAST_SHARE: Final = 0.95
"""Of the labelled independent models must join."""

_HEAD: Final = "| model | joins, or why not | label | experiment | proof ms | KiB |\n|---|---|---|---|---|---|"


def wrong(findings: Sequence[Finding]) -> list[Finding]:
    """Lists what is proved although it couples rows."""
    return [finding for finding in findings if finding.is_wrong]


def missed(findings: Sequence[Finding]) -> list[Finding]:
    """Lists labelled independent models that do not join."""
    return [finding for finding in findings if finding.label == INDEPENDENT and not finding.joins]


def share_of_independent(findings: Sequence[Finding]) -> float:
    """Returns the share of labelled independent models that join; 1 where there are none."""
    labelled = [finding for finding in findings if finding.label == INDEPENDENT]
    return sum(finding.joins for finding in labelled) / len(labelled) if labelled else 1.0


def is_good(findings: Sequence[Finding]) -> bool:
    """Returns whether nothing coupled joins and enough of what is independent does."""
    return not wrong(findings) and share_of_independent(findings) >= LEAST_SHARE


def line(finding: Finding) -> str:
    """Writes one row of the table."""
    why = finding.problem or (f"trial: {finding.trial}" if finding.trial else "joins")
    cells = (
        finding.name, why.replace("|", "\\|"), finding.label or "-", finding.experiment or "-",
        f"{finding.proof_ms:.1f}", f"{finding.byte_count / 1024:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def totals(findings: Sequence[Finding]) -> list[str]:
    """Writes how many join, by origin and label."""
    lines = []
    for origin in (LABELLED, FILES, ONNX_TESTS):
        for label in (INDEPENDENT, COUPLED, ""):
            chosen = [one for one in findings if (one.origin, one.label) == (origin, label)]
            loaded = [one for one in chosen if one.is_loadable]
            if chosen:
                what = f"{origin}, {label}" if label else origin
                lines.append(f"{what}: {sum(one.joins for one in loaded)} of {len(loaded)} join")
            if len(loaded) < len(chosen):
                lines[-1] += f"; {len(chosen) - len(loaded)} more do not load in ONNX Runtime"
    unlabelled = [one for one in findings if not one.label]
    could = [one for one in unlabelled if one.experiment == INDEPENDENT]
    if unlabelled:
        lines.append(
            f"not labelled: of {len(could)} that the experiment calls independent {sum(one.joins for one in could)} "
            f"join, of {sum(one.experiment == COUPLED for one in unlabelled)} that it calls coupled "
            f"{sum(one.is_wrong for one in unlabelled)} are proved"
        )
    slowest = max(findings, key=lambda one: one.proof_ms, default=None)
    if slowest is not None:
        lines.append(
            f"slowest proof: {slowest.name}, {slowest.proof_ms:.0f} ms for {slowest.byte_count / 2**20:.1f} MiB"
        )
    lines.append(f"proved although coupled: {len(wrong(findings))}")
    return lines


def markdown(findings: Sequence[Finding], machine: str) -> str:
    """Writes the report: totals, files and labelled models in full, onnx's tests by reason."""
    parts = ["# What joins, and why not\n", f"`fitserve-bench joining`, {machine}.\n"]
    parts += ["## Totals\n", *(f"- {text}" for text in totals(findings)), ""]
    for title, origin in (("Files", FILES), ("Labelled models", LABELLED)):
        chosen = [line(one) for one in findings if one.origin == origin]
        if chosen:
            parts += [f"## {title}\n", _HEAD, *chosen, ""]
    reasons = Counter(_kind(one) for one in findings if one.origin == ONNX_TESTS and one.is_loadable)
    if reasons:
        parts += ["## onnx's tests, by reason\n", "| reason | models |\n|---|---|"]
        parts += [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    return "\n".join(parts).rstrip() + "\n"


def save(findings: Sequence[Finding], path: Path) -> None:
    """Writes all findings as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(finding.to_json()) + "\n" for finding in findings), encoding="utf-8")


def _kind(finding: Finding) -> str:
    """Strips names and figures from a reason, so that equal ones are counted together."""
    if finding.joins:
        return "joins"
    why = finding.problem or f"trial: {finding.trial}"
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "n", re.sub(r"'[^']*'", "'…'", why)).replace("|", "\\|")
