"""All architectures, and docs/reference/architectures.md, where the outcome of each stands.

usage: python -m tests.architectures.table [NAME...]

Examines the architectures, all by default, and writes what became of them into the document.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tests.architectures.architecture import Architecture
from tests.architectures.examine import Finding, examine
from tests.architectures.handmade import HANDMADE
from tests.architectures.libraries import FOLDER
from tests.architectures.transformer_models import TRANSFORMERS
from tests.architectures.vision import TIMM, TORCHVISION

ARCHITECTURES: dict[str, Architecture] = HANDMADE | TORCHVISION | TIMM | TRANSFORMERS

QUICK = (
    "causal decoder",
    "embedding bag",
    "contrastive similarity (B, B)",
    "several heads",
    "GRU over packed sequences",
    "ViTForImageClassification",
    "batch standardization",
)
"""Those that `make test` runs."""

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"

_INTRODUCTION = """\
# Architectures

What becomes of ordinary architectures that are given to `export()` as they are: random weights, few layers, small
inputs. Each published one was served over gRPC and answers as torch at batch 1, 2 and 5, with inputs that the
verification did not see, to within 1e-3 of an element or of its feature's scale; where axes are free, at another length
too.

- **joinable**: published, and its rows are proved independent: requests of different callers share a batch.
- **not joinable**: published; each request is run alone, for the reason named.
- **refused**: nothing is published; the sentence is the one that `export()` raises.

Written by `python -m tests.architectures.table` on {date}, with {versions}. `make check-slow` runs every line again.

| architecture | library | outcome |
|---|---|---|
"""


def documented() -> dict[str, str]:
    """Reads the document: the name of an architecture to its outcome and the reason."""
    if not DOCUMENT.exists():
        return {}
    cells = [line.split(" | ", 2) for line in DOCUMENT.read_text(encoding="utf-8").splitlines()]
    return {row[0].removeprefix("| "): row[2].removesuffix(" |") for row in cells if len(row) == 3}


def outcome_text(finding: Finding) -> str:
    """Writes an outcome as one cell of the table."""
    text = f"{finding.outcome}: {finding.why}" if finding.why else finding.outcome
    return " ".join(text.replace("|", "\\|").split())


def write(found: dict[str, str]) -> None:
    """Writes the document with these outcomes; other architectures keep theirs."""
    outcomes = documented() | found
    packages = ("torch", "torchvision", "timm", "transformers", "onnxruntime-gpu")
    places = [*sys.path, str(FOLDER)]
    versions = {
        package: one.version
        for package in packages
        for one in importlib.metadata.distributions(name=package, path=places)
    }
    introduction = _INTRODUCTION.format(
        date=datetime.datetime.now(datetime.UTC).date(),
        versions=", ".join(f"{package} {version.partition('+')[0]}" for package, version in versions.items()),
    )
    lines = [
        f"| {name} | {architecture.library} | {outcomes[name]} |\n"
        for name, architecture in ARCHITECTURES.items()
        if name in outcomes
    ]
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(introduction + "".join(lines), encoding="utf-8")


def main(names: list[str]) -> int:
    """Examines architectures one after another; returns 1 where one is answered wrongly."""
    torch.set_num_threads(1)
    wrong = 0
    for name in names or ARCHITECTURES:
        with tempfile.TemporaryDirectory(prefix="fitserve-architecture-") as folder:
            try:
                text = outcome_text(examine(ARCHITECTURES[name], Path(folder)))
            except (AssertionError, pytest.skip.Exception) as error:
                wrong = 1
                print(f"{name}: {error}", flush=True)
                continue
        print(f"{name}: {text}", flush=True)
        write({name: text})
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
