"""A module that torch cannot trace or convert is refused with something that helps."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fitserve_exporters
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.cures import cure_of


class ErrorFunction(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(x)


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(x.numpy() * 2)


class Item(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum().item() > 0 else x


class ManyExamples(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 300 else x


class Generator(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row * 2 for row in x])


CASES = [
    (ErrorFunction(), r"erf_?inv.*compute \S+ from other functions of torch"),
    (Numpy(), "functions of torch in forward, not with numpy"),
    (Item(), "torch.where or torch.cond"),
    (ManyExamples(), r"leave branches on x\.shape\[0\] out"),
    (Generator(), "once in __init__ and keep them with register_buffer"),
    (Loop(), "on all examples at once instead of in a loop"),
]


@pytest.mark.parametrize(("module", "message"), CASES, ids=lambda value: type(value).__name__)
def test_refusal_names_a_cure(tmp_path: Path, module: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        fitserve_exporters.export(module, torch.rand(3, 4) / 2, tmp_path, "m")


def test_experts_of_transformers_have_a_form_to_choose() -> None:
    text = "No ONNX function found for <OpOverload(op='transformers.grouped_mm_fallback', overload='default')>"
    assert "model.set_experts_implementation('batched_mm')" in cure_of(text)


def test_what_nobody_foresaw_has_a_cure_too() -> None:
    assert "publish_onnx" in cure_of("Something else happened")
