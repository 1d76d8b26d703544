"""A module that remembers its first call, or draws numbers too small to see, is refused."""

from pathlib import Path

import numpy as np
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

import fitserve_exporters
from fitserve_exporters.errors import ExportError
from fitserve_exporters.graph.randomness import check_nothing_is_drawn


class Centred(nn.Module):
    """Takes the mean of its first call from every one."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x[:, :1].mean()
        return x - self.mean


class Positions(nn.Module):
    """Keeps what does not depend on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.places is None or len(self.places) != x.shape[1]:
            self.places = torch.arange(x.shape[1]).float()
        return x + self.places


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) * 1e-10


def test_state_of_the_first_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'output': .*Centred after a first call .*keeps state; compute what it"):
        fitserve_exporters.export(Centred(), torch.rand(3, 4), tmp_path, "m")


def test_state_that_does_not_depend_on_values_is_published(tmp_path: Path) -> None:
    assert fitserve_exporters.export(Positions(), torch.rand(3, 4), tmp_path, "m").version == 1


def test_noise_below_the_tolerance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"draws random numbers \(RandomUniformLike\); leave noise and dropout"):
        fitserve_exporters.export(Noisy(), torch.rand(3, 4), tmp_path, "m")


HEAD = '<ir_version: 8, opset_import: ["": 18, "own": 1]>\nagraph (float[N,3] x) => (float[N,3] y) '
PLACES = {
    "the graph": "{ y = RandomNormalLike(x) }",
    "a branch": """{ c = Constant<value = bool {1}>()
        y = If(c) <then_branch = a () => (float[N,3] u) { u = RandomUniformLike(x) },
                   else_branch = b () => (float[N,3] v) { v = Identity(x) }> }""",
    "a function": """{ y = own.f(x) }
        <domain: "own", opset_import: ["": 18]> f (a) => (b) { b = Bernoulli(a) }""",
}


@pytest.mark.parametrize("place", PLACES)
def test_random_node_is_found_wherever_it_is(place: str) -> None:
    content = onnx.parser.parse_model(HEAD + PLACES[place]).SerializeToString()
    with pytest.raises(ExportError, match="draws random numbers"):
        check_nothing_is_drawn(content)


def test_operator_of_that_name_in_another_domain_is_not_meant() -> None:
    check_nothing_is_drawn(onnx.parser.parse_model(HEAD + "{ y = own.Bernoulli(x) }").SerializeToString())


def test_file_with_faint_noise_is_refused(tmp_path: Path) -> None:
    text = "{ r = RandomNormalLike(x) e = Constant<value = float {1e-10}>() s = Mul(r, e) y = Add(x, s) }"
    content = onnx.parser.parse_model(HEAD + text).SerializeToString()
    with pytest.raises(ExportError, match="draws random numbers"):
        fitserve_exporters.publish_onnx(content, lambda x: x, np.ones((4, 3), np.float32), tmp_path, "m")
