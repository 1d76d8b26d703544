"""Sizes of free axes: found from torch's guards, tried out, published, and refused where they cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fitserve_contract.axis_ranges import AxisRange
from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import MODEL_FILE
from fitserve_exporters.errors import ExportError, NotVerifiedError
from fitserve_exporters.lint.checks import lint
from fitserve_exporters.module_export import export
from fitserve_exporters.publishing.published_version import PublishedVersion


class Does(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.places = nn.Parameter(torch.randn(50))
        self.table = nn.Embedding(20, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class WithParts(Does):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)  # type: ignore[arg-type, call-arg]


class Pair(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(x, y)


def above(bound: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.mean(1) * 2 if x.shape[1] > bound else x.mean(1)


def published(module: nn.Module, folder: Path, *shapes: tuple[int, ...], **axes: dict[int, str]) -> PublishedVersion:
    torch.manual_seed(0)
    return export(module, [torch.randn(shape) for shape in shapes], folder, "model", free_axes=axes)


ONE: dict[str, tuple[nn.Module, tuple[int, ...], AxisRange]] = {
    "branch": (Does(above(300)), (4, 6), AxisRange(1, 1, 300)),
    "far branch": (Does(above(3000)), (4, 6), AxisRange(1, 1, 3000)),
    "branch below": (Does(above(5)), (4, 6), AxisRange(1, 6)),
    "multiple": (Does(lambda x: x.reshape(x.shape[0], -1, 8).sum(1)), (4, 16), AxisRange(1, 8, None, 8)),
    "odd": (Does(lambda x: x[:, 1:].sum(1) if x.shape[1] % 2 else x.sum(1)), (4, 7), AxisRange(1, 1, None, 2, 1)),
    "all but one": (Does(lambda x: x.sum(1) if x.shape[1] != 5 else -x.sum(1)), (4, 6), AxisRange(1, 6)),
    "position table": (WithParts(lambda s, x: x + s.places[: x.shape[1]]), (4, 6), AxisRange(1, 1, 50)),
    "place embedding": (WithParts(lambda s, x: x.sum(1) + s.table(torch.arange(x.shape[1])).sum()), (4, 6),
                        AxisRange(1, 1, 20)),
    "NaN of one": (Does(lambda x: x.std(1)), (4, 6), AxisRange(1, 2)),
    "any": (Does(lambda x: x.softmax(1)), (4, 6), AxisRange(1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_range_of_a_free_axis_is_found_and_published(name: str, tmp_path: Path) -> None:
    module, shape, expected = ONE[name]
    version = published(module, tmp_path, shape, x={1: "n"})
    found = read_manifest(version.folder)
    assert found is not None
    assert found.inputs[0].ranges == (expected,)
    (record,) = found.verification["sizes"]
    assert record["verified"][0] == expected.minimum
    assert max(record["verified"]) == (expected.maximum or max(record["verified"]))
    assert expected.maximum or max(record["verified"]) > 3 * shape[1]


def test_axes_of_one_size_follow_the_first(tmp_path: Path) -> None:
    version = published(Pair(lambda x, y: x[:, 1:] + y), tmp_path, (4, 6), (4, 5), x={1: "n"}, y={1: "m"})
    x, y = version.manifest.inputs
    assert x.ranges == (AxisRange(1, 2),)
    assert y.ranges == (AxisRange(1, 1, same_as=("x", 1), offset=-1),)
    assert y.range_texts() == ["m as axis 1 of 'x' - 1"]


def test_bounds_are_shown_by_lint_and_card(tmp_path: Path) -> None:
    version = published(Does(above(300)), tmp_path, (4, 6), x={1: "n"})
    card = next(version.folder.glob("*.html")).read_text()
    assert "n at least 1, at most 300" in card
    report = lint(version.folder / MODEL_FILE)
    assert "input 'x': n at least 1, at most 300: other sizes are refused" in [one.message for one in report.findings]


REFUSED: dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...], dict[str, Any], str]] = {
    "constant": (Does(lambda x: x.view(x.shape[0], 6)), ((4, 6),), {"x": {1: "n"}},
                 r"free_axes\['x'\]\[1\] \('n'\): expected a free axis, but the module makes it the constant 6; leave"),
    "constant batch": (
        Does(lambda x: x * int(x.shape[0])),
        ((4, 6),),
        {},
        "expected a module that takes any number of examples, but it makes the first axis of 'x' the constant",
    ),
    "order": (Pair(lambda x, y: x.sum(1) if x.shape[1] < y.shape[1] else y.sum(1)), ((4, 7), (4, 5)),
              {"x": {1: "n"}, "y": {1: "m"}}, "expected the sizes of axes to be free of each other"),
    "examples": (Does(lambda x: x * 2 if x.shape[0] * x.shape[1] == 30 else x), ((4, 6),), {"x": {1: "n"}},
                 "the same for any number of examples, but with 5"),
    "converter": (Does(lambda x: nn.functional.adaptive_avg_pool1d(x[:, None], 3)), ((4, 12),), {"x": {1: "n"}},
                  r"axis 'n' at size 2: .*leave the axis out of free_axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_sizes_that_cannot_be_published_are_refused_in_words(name: str, tmp_path: Path) -> None:
    module, shapes, axes, sentence = REFUSED[name]
    with pytest.raises((ExportError, NotVerifiedError), match=sentence):
        published(module, tmp_path, *shapes, **axes)
    assert not any(tmp_path.iterdir())
