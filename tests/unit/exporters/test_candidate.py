"""What an export starts from has to fit together."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec, numpy_dtype
from fitserve_exporters.errors import ExportError
from fitserve_exporters.run_export import tolerance_of

X = InputSpec("x", torch.float32, ("batch", 3))


def build(**changes: Any) -> Candidate:
    arguments: dict[str, Any] = {
        "module": nn.Linear(3, 1),
        "inputs": (X,),
        "output_names": ("y",),
        "held_out": HeldOut({"x": np.zeros((4, 3), np.float32)}, None, "zeros"),
    }
    return Candidate(**(arguments | changes))


def test_parts_that_fit_are_accepted() -> None:
    assert build().held_out.example_count == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "expected inputs and outputs, got 0 and 1"),
        ({"output_names": ()}, "expected inputs and outputs, got 1 and 0"),
        ({"output_names": ("x",)}, "expected each once, got x"),
        ({"output_names": ("",)}, "no empty name"),
        ({"inputs": (InputSpec("x", torch.float32, (4, 3)),)}, r"batch as its first axis, got shape \(4, 3\)"),
        ({"inputs": (InputSpec("x", torch.float32, ()),)}, "batch as its first axis"),
        ({"task": Task(TaskKind.REGRESSION, "z", Scores.VALUES)}, "expected an output of y, got 'z'"),
        ({"held_out": HeldOut({"z": np.zeros((4, 3), np.float32)}, None, "")}, r"expected \['x'\], got \['z'\]"),
        ({"held_out": HeldOut({"x": np.zeros((0, 3), np.float32)}, None, "")}, "at least 1"),
        ({"held_out": HeldOut({"x": np.zeros((4, 3), np.float32)}, np.zeros(3), "")}, "'x': 4, 'labels': 3"),
        ({"held_out": HeldOut({"x": np.zeros((4, 2), np.float32)}, None, "")}, r"got float32 \(4, 2\)"),
        ({"held_out": HeldOut({"x": np.zeros((4, 3))}, None, "")}, "expected float32 .*, got float64"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        build(**changes)


def test_dtype_that_numpy_lacks_is_refused() -> None:
    with pytest.raises(ExportError, match="bfloat16"):
        numpy_dtype(torch.bfloat16)


def test_recipe_overrides_of_the_tolerance() -> None:
    assert tolerance_of(None).reason
    assert tolerance_of({"atol": 1e-3}).atol == 1e-3
    with pytest.raises(ExportError, match="got atoll"):
        tolerance_of({"atoll": 1e-3})
