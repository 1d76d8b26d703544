"""Writes a software bill of materials of an environment: CycloneDX 1.6 JSON, from what is installed. Stdlib only.

usage: PYTHON_OF_THE_ENVIRONMENT write_sbom.py OUTPUT.json

Every installed distribution is a component with its version, licence, package URL and, where the installer wrote them
down, the hashes of the archive it came from; `dependencies` has who requires whom among them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

_ROOT = "fitserve"
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""\bextra\s*==""")
_HASHES = {"sha256": "SHA-256", "sha384": "SHA-384", "sha512": "SHA-512"}


def main(arguments: list[str]) -> int:
    """Writes the file; 2 where fitserve itself is not installed."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        bill = bill_of_materials(distributions())
    except ValueError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 2
    Path(arguments[0]).write_text(json.dumps(bill, indent=2) + "\n")
    print(f"sbom: {len(bill['components'])} components in {arguments[0]}")
    return 0


def bill_of_materials(installed: Iterable[Distribution]) -> dict[str, Any]:
    """Makes the document.

    Args:
        installed: Distributions of one environment.

    Raises:
        ValueError: fitserve is not among them.
    """
    known = {_normal(dist.metadata["Name"]): dist for dist in installed if dist.metadata["Name"]}
    if _ROOT not in known:
        raise ValueError(f"expected {_ROOT} to be installed in {sys.prefix}, found {len(known)} other distributions")
    names = sorted(known)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, " ".join(_reference(known[name]) for name in names))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"timestamp": _now(), "component": _component(known[_ROOT], "application")},
        "components": [_component(known[name], "library") for name in names if name != _ROOT],
        "dependencies": [_dependencies(known[name], known) for name in names],
    }


def _component(dist: Distribution, kind: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": _reference(dist),
        "name": dist.metadata["Name"],
        "version": dist.version,
        "purl": _reference(dist),
    }
    if licence := _licence(dist):
        component["licenses"] = [licence]
    if hashes := _hashes(dist):
        component["hashes"] = hashes
    return component


def _dependencies(dist: Distribution, known: dict[str, Distribution]) -> dict[str, Any]:
    """Lists what a distribution requires and has; of our own, the extras count too: they are what was asked for."""
    is_own = _normal(dist.metadata["Name"]) == _ROOT
    required = [text for text in dist.requires or [] if is_own or not _EXTRA.search(text)]
    names = {_normal(match[0]) for text in required if (match := _REQUIREMENT.match(text))}
    names -= {_normal(dist.metadata["Name"])}
    return {"ref": _reference(dist), "dependsOn": sorted(_reference(known[name]) for name in names & known.keys())}


def _licence(dist: Distribution) -> dict[str, Any] | None:
    if expression := _field(dist, "License-Expression"):
        return {"expression": expression}
    text = _field(dist, "License").strip()
    if text and "\n" not in text and len(text) < 128:
        return {"license": {"name": text}}
    classifiers = [line for line in dist.metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    return {"license": {"name": classifiers[0].rpartition(":: ")[2]}} if classifiers else None


def _field(dist: Distribution, name: str) -> str:
    values = dist.metadata.get_all(name) or []
    return str(values[0]) if values else ""


def _hashes(dist: Distribution) -> list[dict[str, str]]:
    text = dist.read_text("direct_url.json")
    archive = json.loads(text).get("archive_info", {}) if text else {}
    return [
        {"alg": _HASHES[name], "content": digest}
        for name, digest in sorted(archive.get("hashes", {}).items())
        if name in _HASHES
    ]


def _reference(dist: Distribution) -> str:
    version = dist.version.replace("+", "%2B")
    return f"pkg:pypi/{_normal(dist.metadata['Name'])}@{version}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _now() -> str:
    """Gives the time, or the one that SOURCE_DATE_EPOCH names, so that a build can be repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
