"""Exports an architecture, serves it over gRPC and compares the answers with torch; or reports the refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.architectures.architecture import Architecture, Inputs, roughened
from tests.wire.serving import WAIT_S, serving, url
from torch import nn

import fitserve_exporters
from fitserve_client import Client
from fitserve_exporters.errors import ExportError, NotVerifiedError

BATCHES = (1, 2, 5)
EXAMPLE_ROWS = 5
SHARE = 1e-3
"""An element may be off by this share of itself or of its feature's scale."""

_SCALE_ROWS = 16


@dataclass(frozen=True)
class Finding:
    """What became of an architecture.

    Args:
        outcome: `joinable`, `not joinable` or `refused`.
        why: The node that keeps it from joining, or the sentence of the refusal.
    """

    outcome: str
    why: str = ""


def examine(architecture: Architecture, folder: Path) -> Finding:
    """Publishes and serves an architecture.

    Raises:
        AssertionError: the server answers otherwise than torch; the message names the output.
    """
    torch.manual_seed(0)
    module = roughened(architecture.make())
    example = architecture.draw(EXAMPLE_ROWS)
    try:
        published = fitserve_exporters.export(module, example, folder, "m", **architecture.settings)
    except (ExportError, NotVerifiedError) as error:
        return Finding("refused", str(error))
    with serving(folder) as server, Client(url(server)) as client:
        client.wait_until_ready("m", timeout_s=WAIT_S)
        joining = next(version.joining for version in client.model("m").versions)
        assert joining == published.manifest.onnx["joining"]
        names = [spec.name for spec in published.manifest.inputs]
        outputs = [spec.name for spec in published.manifest.outputs]
        torch.manual_seed(1)
        for rows in BATCHES:
            _compare(client, architecture, module, architecture.draw(_SCALE_ROWS), rows, (names, outputs))
        if architecture.longer:
            _compare(client, architecture, module, architecture.longer(_SCALE_ROWS), 3, (names, outputs))
    outcome, _, why = joining.partition(": ")
    return Finding(outcome, why)


def _compare(
    client: Client,
    architecture: Architecture,
    module: nn.Module,
    drawn: Inputs,
    rows: int,
    ends: tuple[list[str], list[str]],
) -> None:
    """Asks for some rows of what was drawn; the rest only makes the features' scales."""
    inputs = {name: tensor[:rows].numpy() for name, tensor in _by_name(drawn, ends[0]).items()}
    answer = client.predict("m", inputs, timeout_s=WAIT_S).outputs
    scales = [_scale(array) for array in _answers(architecture, module, drawn, None)]
    expected = _answers(architecture, module, drawn, rows)
    assert list(answer) == ends[1]
    for name, scale, exact in zip(ends[1], scales, expected, strict=True):
        got = answer[name]
        assert (got.shape, got.dtype) == (exact.shape, exact.dtype), name
        if exact.dtype.kind != "f":
            np.testing.assert_array_equal(got, exact, name)
            continue
        allowed = SHARE * np.maximum(np.abs(exact), scale)
        off = np.abs(got.astype(np.float64) - exact) > allowed
        assert not off.any(), f"{name} of {rows} rows: {off.sum()} of {off.size} elements are off"


def _answers(architecture: Architecture, module: nn.Module, drawn: Inputs, rows: int | None) -> list[Any]:
    with torch.no_grad():
        if isinstance(drawn, torch.Tensor):
            answer = module(drawn[:rows])
        elif isinstance(drawn, Mapping):
            answer = module(**{name: tensor[:rows] for name, tensor in drawn.items()})
        else:
            answer = module(*(tensor[:rows] for tensor in drawn))
    leaves = torch.utils._pytree.tree_leaves(architecture.pick(answer))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _by_name(drawn: Inputs, names: list[str]) -> dict[str, torch.Tensor]:
    if isinstance(drawn, Mapping):
        return {name: drawn[name] for name in names}
    return dict(zip(names, [drawn] if isinstance(drawn, torch.Tensor) else drawn, strict=True))


def _scale(array: Any) -> Any:
    """Computes the root mean square of each feature: axis 1 of (B, C, H, W) and (B, C, T, H, W), else the last."""
    if array.dtype.kind != "f" or array.ndim < 2:
        return np.sqrt(np.mean(np.square(array, dtype=np.float64)))
    feature = 1 if array.ndim >= 4 else array.ndim - 1
    others = tuple(axis for axis in range(array.ndim) if axis != feature)
    return np.sqrt(np.mean(np.square(array, dtype=np.float64), axis=others, keepdims=True))
