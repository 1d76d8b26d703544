"""Sizes of free axes that a version was proved at, as its manifest has them and the server enforces them."""

from __future__ import annotations

from collections.abc import Iterator

from fitserve_contract.files import UnsafeFileError
from fitserve_contract.manifest import ManifestError, read_manifest
from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile


def size_findings(file: OnnxFile) -> Iterator[Finding]:
    """Names the bounds of each input; nothing for a file without a manifest beside it."""
    try:
        manifest = read_manifest(file.path.parent)
    except (ManifestError, UnsafeFileError, OSError) as error:
        yield Finding(Level.WARNING, "sizes", f"the manifest beside the file cannot be read: {error}")
        return
    for spec in manifest.inputs if manifest is not None else ():
        if texts := spec.range_texts():
            yield Finding(Level.NOTE, "sizes", f"input '{spec.name}': {'; '.join(texts)}: other sizes are refused")
