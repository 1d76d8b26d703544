"""A graph that answers as torch on the held-out set alone is refused: infinite, or other numbers, at other values."""

from collections.abc import Callable

import numpy as np
import onnx.parser
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.sessions import CPU, OrtSession
from fitserve_exporters.verification.truth import Truth
from fitserve_exporters.verification.values import ValueRecord, prove_values


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def proved(function: Callable[[Tensor], Tensor], body: str, dtype: str = "float32") -> ValueRecord:
    """Holds a graph (B, 4) to (B, 4) of FP32 or FP16 against a function on 16 rows of 0.5 to 1.5."""
    kind = {"float32": "float", "float16": "float16"}[dtype]
    text = f'<ir_version: 8, opset_import: ["": 18]>\nagraph ({kind}[N,4] x) => ({kind}[N,4] y) {{ {body} }}'
    x = (np.random.default_rng(0).random((16, 4)) + 0.5).astype(dtype)
    candidate = Candidate(
        module=Does(function),
        inputs=(InputSpec("x", torch.from_numpy(x).dtype, ("N", 4)),),
        output_names=("y",),
        held_out=HeldOut({"x": x}, None, "drawn"),
    )
    session = OrtSession(onnx.parser.parse_model(text).SerializeToString(), CPU)
    return prove_values(candidate, [session], Truth(candidate))


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "overflow below": (
        functional.logsigmoid,
        "s = Sigmoid(x) y = Log(s)",
        "with other signs are answered by -inf, by torch -",
    ),
    "overflow above": (
        lambda x: torch.logaddexp(x, x),
        "e = Exp(x) s = Add(e, e) y = Log(s)",
        "a thousandfold are answered by inf",
    ),
    "no number": (functional.normalize, "n = ReduceL2<axes = [1]>(x) y = Div(x, n)", "zeros are answered by nan"),
    "the other half": (torch.abs, "y = Identity(x)", "other signs are answered by -"),
    "nothing": (lambda x: torch.where(x == 0, 1.0, x), "y = Identity(x)", "zeros are answered by 0, by torch 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_graph_that_holds_on_the_examples_alone_is_refused(name: str) -> None:
    function, body, message = WRONG[name]
    body = body.replace("ReduceL2<axes = [1]>(x)", "ReduceL2<keepdims = 1>(x, a)")
    if "a)" in body:
        body = f"a = Constant<value = int64[1] {{1}}>() {body}"
    with pytest.raises(NotVerifiedError, match=f"output 'y': inputs of .*({message})"):
        proved(function, body)


def test_right_graph_is_taken_and_says_what_was_tried() -> None:
    record = proved(torch.exp, "y = Exp(x)")
    assert record.to_json() == {
        "tried": ["zeros", "other signs", "a thousandfold", "a thousandfold with other signs"],
        "nan": None,
        "differs": None,
    }


def test_step_that_rounding_decides_is_no_fault() -> None:
    record = proved(lambda x: torch.round(x * 1e7), "c = Constant<value = float {1e7}>() m = Mul(x, c) y = Round(m)")
    assert not record.beyond


def test_hidden_nan_is_recorded() -> None:
    axes = "a = Constant<value = int64[1] {1}>() m = ReduceMax<keepdims = 1>(x, a) s = Shape(x) y = Expand(m, s)"
    record = proved(lambda x: x.amax(1, keepdim=True).expand(-1, 4), axes)
    assert record.nan == "CPUExecutionProvider: outputs y are numbers where torch answers NaN"


def test_half_precision_and_its_overflows_are_left_out() -> None:
    assert proved(lambda x: x * 2, "y = Add(x, x)", "float16").tried == ()
