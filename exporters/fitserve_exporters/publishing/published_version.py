"""What an export returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitserve_contract.manifest import Manifest
from fitserve_exporters.variants import Variant
from fitserve_exporters.verification.verify import Verification


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version that was verified and published.

    Args:
        model: Model name.
        version: Its number.
        folder: Where it lies.
        manifest: What was written beside it.
        verification: The figures.
        variants: What became of each variant that was asked for.
    """

    model: str
    version: int
    folder: Path
    manifest: Manifest
    verification: Verification
    variants: tuple[Variant, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Gives it for programs."""
        return {
            "model": self.model,
            "version": self.version,
            "folder": str(self.folder),
            "onnx": dict(self.manifest.onnx),
            "verification": dict(self.manifest.verification),
            "variants": {variant.name: variant.refusal or "published" for variant in self.variants},
        }
