"""Weights outside the file: they have to be beside it, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx

from fitserve_contract.files import UnsafeFileError, open_beneath
from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile, all_tensors


def external_findings(file: OnnxFile) -> Iterator[Finding]:
    """Looks at every tensor whose content lies in another file."""
    places = [_place(tensor) for tensor in all_tensors(file.model) if is_external(tensor)]
    broken = set()
    for name, location, offset, length in places:
        problem = _problem(file.path.parent, location, offset, length)
        if problem and location not in broken:
            broken.add(location)
            yield Finding(Level.ERROR, "external_data", f"tensor '{name}': {problem}")
    files = sorted({location for _, location, _, _ in places} - broken)
    if files:
        yield Finding(
            Level.WARNING,
            "external_data",
            f"the weights of {len(places)} tensors lie in {', '.join(files)}: publish them beside the model, "
            "or save the model as one file",
        )


def is_external(tensor: onnx.TensorProto) -> bool:
    """Tells whether a tensor's content lies in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _place(tensor: onnx.TensorProto) -> tuple[str, str, str, str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return tensor.name, entries.get("location", ""), entries.get("offset", "0"), entries.get("length", "0")


def _problem(folder: Path, location: str, offset: str, length: str) -> str:
    """Says what is wrong with one place; empty where nothing is."""
    if not offset.isdecimal() or not length.isdecimal():
        return f"expected an offset and a length of at least 0 in '{location}', got {offset[:24]} and {length[:24]}"
    try:
        with open_beneath(folder, location) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
    except UnsafeFileError as error:
        return f"external data: {error}"
    except OSError as error:
        return f"expected its content in file '{location}' beside the model: {error.strerror}"
    end = int(offset) + int(length)
    return f"expected file '{location}' of at least {end} bytes, got {size_bytes}" if end > size_bytes else ""
