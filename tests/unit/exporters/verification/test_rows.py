"""Rows that depend on each other are refused with the node, published on request, and then never joined."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fitserve_contract.joinability.proof import prove_rows
from fitserve_contract.repository import MODEL_FILE
from fitserve_exporters.errors import ExportError
from fitserve_exporters.module_export import export


class Does(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


COUPLED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "peak": (lambda x: x / torch.clamp(x.abs().max(), min=10.0), r"beside one of values up to .*ReduceMax over axis 0"),
    "running": (lambda x: x.cumsum(0), r"beside other examples .*CumSum over axis 0"),
    "share": (lambda x: x / x.shape[0], r"a row alone .*Div reads the number of rows"),
    "first": (lambda x: x - x[:1], r"beside other examples .*Slice of axis 0"),
    "NaN": (lambda x: x + 0 * x.sum(), r"beside one with NaN .*ReduceSum over axis 0"),
    "step": (lambda x: torch.where((x > 500).any(), x * 2, x), r"beside one of values .*ReduceMax over axis 0"),
    "integers": (lambda x: (x * 10).long().cumsum(0), r"output 'output' moves by .*CumSum over axis 0"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rows_are_refused_with_the_node(name: str, tmp_path: Path) -> None:
    function, sentence = COUPLED[name]
    torch.manual_seed(0)
    with pytest.raises(ExportError, match=f"(?s)rows depend on each other: .*{sentence}.*allow_coupled_rows=True"):
        export(Does(function), torch.randn(4, 4), tmp_path, "model")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["peak", "running", "share", "NaN"])
def test_coupled_rows_are_published_on_request_as_not_joinable(name: str, tmp_path: Path) -> None:
    version = export(Does(COUPLED[name][0]), torch.randn(4, 4), tmp_path, "model", allow_coupled_rows=True)
    assert version.manifest.onnx["joining"].startswith("not joinable: node ")
    assert version.manifest.verification["rows"]["seen_to_depend"]
    assert prove_rows((version.folder / MODEL_FILE).read_bytes()).problem


def test_rows_that_are_not_proved_but_never_seen_to_depend_are_not_joinable(tmp_path: Path) -> None:
    version = export(Does(lambda x: x.flip(0).flip(0)), torch.randn(4, 4), tmp_path, "model")
    assert version.manifest.onnx["joining"].startswith("not joinable: node ")
    rows = version.manifest.verification["rows"]
    assert (rows["is_proved_by_graph"], rows["seen_to_depend"]) == (False, None)
    assert rows["hostile_count"] > 10


def test_independent_rows_are_joinable(tmp_path: Path) -> None:
    version = export(Does(lambda x: torch.softmax(x * 3, 1).cos()), torch.randn(4, 4), tmp_path, "model")
    assert version.manifest.onnx["joining"] == "joinable"
    assert version.manifest.verification["rows"]["is_proved_by_graph"] is True


def test_output_that_is_as_long_as_the_batch_by_chance_is_refused(tmp_path: Path) -> None:
    """One element of each example is above 0, but not of other rows: the row alone had another shape, an IndexError."""
    torch.manual_seed(1076)
    layer, example = nn.Linear(4, 4), torch.randn(5, 4)
    with pytest.raises(ExportError, match=r"rows depend on each other: .*NonZero lists the places of all rows"):
        export(nn.Sequential(layer, Does(lambda y: y[y > 0])), example, tmp_path, "model")
