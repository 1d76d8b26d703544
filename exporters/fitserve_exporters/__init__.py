"""From a trained module to a verified, published ONNX version: export, verify, publish, lint.

`export` and its result are loaded on first use: torch and onnx take seconds, and `fitserve-export --help` needs
neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitserve_contract import runtime_reports

if TYPE_CHECKING:
    from fitserve_exporters.module_export import PublishedVersion, Tolerance, export
    from fitserve_exporters.onnx_publish import publish_onnx

runtime_reports.turn_off()

__all__ = ["PublishedVersion", "Tolerance", "export", "publish_onnx"]


def __getattr__(name: str) -> Any:
    if name == "publish_onnx":
        from fitserve_exporters import onnx_publish

        return onnx_publish.publish_onnx
    if name in __all__:
        from fitserve_exporters import module_export

        return getattr(module_export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
