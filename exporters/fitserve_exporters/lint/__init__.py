"""Tells before deployment whether an ONNX file can be served, and what is to be expected of it."""

from __future__ import annotations

from fitserve_exporters.lint.checks import lint
from fitserve_exporters.lint.findings import Finding, Level, LintReport

__all__ = ["Finding", "Level", "LintReport", "lint"]
