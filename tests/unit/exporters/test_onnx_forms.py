"""Functions that torch's converter writes wrongly or not at all answer as torch does, also where values are odd."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fitserve_exporters
from fitserve_contract.repository import MODEL_FILE
from fitserve_exporters.graph import onnx_forms
from fitserve_exporters.graph.onnx_forms import FORMS, OnnxForms

ODD = torch.tensor(
    [0.0, -0.0, 1e-8, -1e-8, 0.5, -0.5, 3.0, -3.0, 90.0, -90.0, 1e4, -1e4, math.inf, -math.inf, math.nan],
)
EVEN = torch.tensor([[3.0, -1.0, 2.5, 0.5, 7.0], [-4.0, 9.0, 1.0, 8.0, 0.25]])
PLACES = torch.tensor([[0, 4, 1], [2, 2, 0]])

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "logsigmoid": functional.logsigmoid,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
}
PAIRWISE: dict[str, Callable[..., Tensor]] = {
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "atan2": torch.atan2,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "hypot": torch.hypot,
    "copysign": torch.copysign,
}
ALONG_AN_AXIS: dict[str, Callable[[Tensor], Any]] = {
    "logcumsumexp": lambda x: x.mul(100).logcumsumexp(1),
    "cumprod": lambda x: x.cumprod(1),
    "cumprod of integers": lambda x: x.int().cumprod(dim=1),
    "cdist": lambda x: torch.cdist(x.unsqueeze(-1), x.unsqueeze(-1) * 2, p=1.0),
    "codebook": lambda x: torch.cdist(x, EVEN),
    "take_along_dim": lambda x: torch.take_along_dim(x, PLACES, 1),
    "median": lambda x: x.median(1),
    "median of four": lambda x: x[:, :4].median(dim=-1, keepdim=True),
    "kthvalue": lambda x: x.kthvalue(2, 1),
    "searchsorted": lambda x: torch.searchsorted(torch.tensor([0.5, 1.0, 3.0]), x),
    "searchsorted right": lambda x: torch.searchsorted(torch.tensor([0.5, 1.0, 3.0]), x, right=True, out_int32=True),
}


def check_same(call: Callable[[], Any]) -> None:
    """Holds a call in its form against torch's own."""
    expected = call()
    with OnnxForms():
        found = call()
    torch.testing.assert_close(tuple(found) if isinstance(found, tuple) else found,
                               tuple(expected) if isinstance(expected, tuple) else expected,
                               equal_nan=True, rtol=2e-6, atol=1e-12)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_form_of_each_element_is_torchs(name: str, dtype: torch.dtype) -> None:
    check_same(lambda: ELEMENTWISE[name](ODD.to(dtype)))


@pytest.mark.parametrize("name", PAIRWISE)
def test_form_of_each_pair_is_torchs(name: str) -> None:
    check_same(lambda: PAIRWISE[name](ODD.unsqueeze(0), ODD.unsqueeze(1)))


@pytest.mark.parametrize("name", ALONG_AN_AXIS)
def test_form_along_an_axis_is_torchs(name: str) -> None:
    check_same(lambda: ALONG_AN_AXIS[name](EVEN))


def test_calls_that_no_form_takes_are_torchs_own() -> None:
    check_same(lambda: EVEN.median())
    check_same(lambda: torch.take_along_dim(EVEN, PLACES))
    check_same(lambda: torch.log1p(EVEN.abs(), out=torch.empty(2, 5)))
    check_same(lambda: torch.searchsorted(EVEN.sort(1).values, EVEN))


class Odd(nn.Module):
    """All of them at once; the example holds none of the values at which the converter's own forms fail."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = {name: function(x) for name, function in ELEMENTWISE.items()}
        two = {name: function(x, x.flip(1)) for name, function in PAIRWISE.items()}
        along = {"cumprod": x.cumprod(1), "logcumsumexp": x.logcumsumexp(1), "second": x.kthvalue(2, 1).values}
        return one | two | along


def test_values_and_places_are_served_in_torchs_order(tmp_path: Path) -> None:
    class Median(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.median(1)

    published = fitserve_exporters.export(Median(), EVEN, tmp_path, "m")
    session = onnxruntime.InferenceSession(str(published.folder / MODEL_FILE))
    assert [answer.tolist() for answer in session.run(None, {"x": EVEN.numpy()})] == [[2.5, 1.0], [2, 2]]


def test_served_answers_are_torchs_beyond_the_example(tmp_path: Path) -> None:
    published = fitserve_exporters.export(Odd(), torch.rand(8, 5) + 0.5, tmp_path, "m")
    session = onnxruntime.InferenceSession(str(published.folder / MODEL_FILE))
    x = torch.tensor([[-200.0, 0.0, 1e-8, 2.0, -3.0], [-1.0, 1.0, 0.0, -0.0, -1.0], [1e3, -1e3, 500.0, 400.0, 0.0]])
    answers = dict(zip((one.name for one in session.get_outputs()), session.run(None, {"x": x.numpy()}), strict=True))
    for name, expected in Odd()(x).items():
        torch.testing.assert_close(
            torch.from_numpy(answers[name]), expected, equal_nan=True, rtol=1e-4, atol=1e-7, msg=name
        )


def test_every_form_is_tried() -> None:
    own = {name for name, form in FORMS.items() if form.__module__ == onnx_forms.__name__}
    tried = {word for name in (*ELEMENTWISE, *PAIRWISE, *ALONG_AN_AXIS) for word in name.split()}
    assert own - tried == {"log_sigmoid", "arctan2"}  # other names of what is tried
