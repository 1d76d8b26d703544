"""Proofs that follow rows into branches, loops and functions of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from joinability_world import I, body, ints, model, node
from onnx import helper

from fitserve_contract.joinability.proof import prove_rows


def branching(condition: list[onnx.NodeProto], other: onnx.NodeProto, constants: dict[str, Any]) -> bytes:
    branches: dict[str, Any] = {
        "then_branch": body([node("Relu", "x", "a")], "", "a"),
        "else_branch": body([other], "", "b"),
    }
    return model([*condition, node("If", "c", **branches)], {"x": ("N", "S")}, constants)


IS_LONG = [node("Shape", "x", "s", start=1), node("Squeeze", "s", "n"), node("Greater", "n limit", "c")]
IS_MANY = [node("Shape", "x", "s", end=1), node("Squeeze", "s", "n"), node("Greater", "n limit", "c")]
IS_HIGH = [node("ReduceMax", "x", "n", keepdims=0), node("Cast", "n", "i", to=I), node("Greater", "i limit", "c")]
LIMIT = {"limit": np.int64(3)}


def test_branches_by_what_all_rows_share_keep_their_rows() -> None:
    assert prove_rows(branching(IS_LONG, node("Neg", "x", "b"), LIMIT)).is_proved


@pytest.mark.parametrize(
    ("condition", "other", "text"),
    [
        (IS_MANY, node("Neg", "x", "b"), "If decides by the number of rows"),
        (IS_HIGH, node("Neg", "x", "b"), "ReduceMax over axis 0"),
        (IS_LONG, node("Softmax", "x", "b", axis=0), "Softmax over axis 0"),
        (IS_LONG, node("Identity", "limit", "b"), "If yields rows in one case"),
    ],
)
def test_branches_that_mix_do_not(condition: list[onnx.NodeProto], other: onnx.NodeProto, text: str) -> None:
    assert text in prove_rows(branching(condition, other, LIMIT)).problem


def looping(step: list[onnx.NodeProto], count: str = "limit") -> bytes:
    loop = body([*step, node("Identity", "go", "again")], "i go h", "again next")
    return model([node("Loop", f"{count} - x", body=loop)], {"x": ("N", 4)}, LIMIT)


def test_loops_that_carry_rows_keep_them() -> None:
    assert prove_rows(looping([node("Tanh", "h", "next")])).is_proved


def test_loops_that_mix_in_a_later_round_do_not() -> None:
    content = looping([node("Softmax", "h", "a", axis=0), node("Mul", "a h", "next")])

    assert "Softmax over axis 0" in prove_rows(content).problem


def test_a_scan_over_time_keeps_its_rows() -> None:
    step = body([node("Add", "h t", "next"), node("Identity", "next", "out")], "h t", "next out")
    start = [node("ReduceSum", "x one", "first", keepdims=0)]
    content = model(
        [
            *start,
            node("Scan", "first x", "last all", body=step, num_scan_inputs=1, scan_input_axes=[1]),
            node("Transpose", "all", perm=[1, 0, 2]),
        ],
        {"x": ("N", "T", 4)},
        {"one": ints(1)},
    )

    assert prove_rows(content).is_proved


def own_function(nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_function("own", "F", ["a"], ["b"], nodes, opsets, attributes=["along"])


@pytest.mark.parametrize(("axis", "is_proved"), [(1, True), (0, False)])
def test_functions_are_followed_with_the_callers_attributes(axis: int, is_proved: bool) -> None:
    softmax = node("Softmax", "a", "b")
    softmax.attribute.append(onnx.AttributeProto(name="axis", ref_attr_name="along", type=onnx.AttributeProto.INT))
    content = model([node("F", "x", domain="own", along=axis)], functions=[own_function([softmax])])

    assert prove_rows(content).is_proved is is_proved


def test_a_function_that_calls_itself_is_not_followed_for_ever() -> None:
    twice = [node("F", "a", "c", domain="own"), node("F", "c", "b", domain="own")]
    content = model([node("F", "x", domain="own")], functions=[own_function(twice)])

    assert "nested more than 24 deep" in prove_rows(content).problem


def test_what_doubles_with_every_function_is_not_followed_for_ever() -> None:
    functions = [
        helper.make_function("own", "F0", ["a"], ["b"], [node("Relu", "a", "b")], [helper.make_opsetid("", 20)])
    ]
    for level in range(1, 22):
        nodes = [node(f"F{level - 1}", "a", "c", domain="own"), node(f"F{level - 1}", "c", "b", domain="own")]
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], nodes, [helper.make_opsetid("own", 1)]))
    content = model([node("F21", "x", domain="own")], functions=functions)

    assert "more than 2,000,000 steps" in prove_rows(content).problem
