"""What lint found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fitserve_contract.printable import printable


class Level(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """It cannot be served."""
    WARNING = "warning"
    """It can be served, with less than could be had."""
    NOTE = "note"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Args:
        level: How much it matters.
        check: What was looked at: file, checker, opset, operators, cuda, external_data, weights, batch, inputs, load,
            types.
        message: One sentence that names the thing, what was expected and what was found.
    """

    level: Level
    check: str
    message: str


@dataclass(frozen=True, slots=True)
class LintReport:
    """All findings about one file."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def can_be_served(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level is not Level.ERROR for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Gives the report for programs."""
        found = [{"level": f.level.value, "check": f.check, "message": f.message} for f in self.findings]
        return {"model": self.model, "can_be_served": self.can_be_served, "findings": found}

    def to_text(self) -> str:
        """Writes the report for people, errors first."""
        order = list(Level)
        ordered = sorted(self.findings, key=lambda finding: order.index(finding.level))
        verdict = "can be served" if self.can_be_served else "cannot be served"
        lines = [f"{f.level.value:<8} {f.check}: {f.message}" for f in ordered]
        # Names come from the file that is looked at.
        return "\n".join(map(printable, [*lines, f"{self.model}: {verdict}"]))
