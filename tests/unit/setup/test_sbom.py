"""The bill of materials of this very environment names what is installed and what fitserve requires."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

_SCRIPT = Path(__file__).parents[3] / "setup" / "write_sbom.py"


def test_the_bill_names_what_is_installed_and_who_requires_it(tmp_path: Path) -> None:
    output = tmp_path / "sbom.json"
    subprocess.run([sys.executable, _SCRIPT, output], check=True, capture_output=True)
    bill = json.loads(output.read_text())

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "fitserve"
    found = {component["name"]: component for component in bill["components"]}
    assert found["numpy"]["version"] == version("numpy")
    assert found["grpcio"]["purl"] == f"pkg:pypi/grpcio@{version('grpcio')}"
    assert found["protobuf"]["licenses"]
    edges = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert f"pkg:pypi/protobuf@{version('protobuf')}" in edges[bill["metadata"]["component"]["bom-ref"]]
    assert {ref for refs in edges.values() for ref in refs} <= edges.keys()
    assert len(edges) == len(found) + 1


def test_an_environment_without_fitserve_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", _SCRIPT, tmp_path / "sbom.json"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "sbom: expected fitserve to be installed" in done.stderr
