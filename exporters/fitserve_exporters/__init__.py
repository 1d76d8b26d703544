"""From a trained module to a verified, published ONNX version: export, verify, publish, lint.

`export` and its result are loaded on first use: torch and onnx take seconds, and `fitserve-export --help` needs
neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitserve_contract import runtime_reports

if TYPE_CHECKING:
    from fitserve_exporters.module_export import PublishedVersion, Tolerance, export

runtime_reports.turn_off()

__all__ = ["PublishedVersion", "Tolerance", "export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fitserve_exporters import module_export

        return getattr(module_export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
