"""Texts that are joined and split: a row's parts are its own where every row has as many."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from joinability_world import I, body, model, node
from onnx import TensorProto

from fitserve_contract.joinability.proof import prove_rows

S = TensorProto.STRING
FIRST = {"first": np.int64(0)}


def split(ending: Any, *, delimiter: str = ",", maxsplit: int | None = 2, swapped: bool = False) -> bytes:
    """Splits `x` with an ending behind it and takes the first part."""
    names = "ending x" if swapped else "x ending"
    limit = {} if maxsplit is None else {"maxsplit": maxsplit}
    nodes = [
        node("StringConcat", names, "ended"),
        node("StringSplit", "ended", "parts counts", delimiter=delimiter, **limit),
        node("Gather", "parts first", axis=-1),
    ]
    return model(nodes, {"x": ("N",)}, types={"x": S, "y": S}, constants={"ending": ending, **FIRST}, opset=20)


def text(value: str) -> np.ndarray[Any, Any]:
    return np.array(value, object)


def test_a_text_that_ends_with_as_many_delimiters_as_are_split_at_is_proved() -> None:
    content = split(text("x,,"))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    (alone,) = session.run(None, {"x": np.array(["a"], object)})
    (beside,) = session.run(None, {"x": np.array(["a", "b,c,d,e", ""], object)})

    assert prove_rows(content).problem == ""
    assert beside.tolist() == [*alone.tolist(), "b", "x"]


@pytest.mark.parametrize(
    ("ending", "changes"),
    [
        (text(","), {}),
        (text(",,x"), {}),
        (text(", ,"), {}),
        (np.array([",,", ",,"], object), {}),
        (text(",,"), {"maxsplit": None}),
        (text(",,"), {"maxsplit": 0}),
        (text(",,"), {"maxsplit": -1}),
        (text(",,"), {"delimiter": ";"}),
        (text(",,"), {"delimiter": ",,"}),
        (text("  "), {"delimiter": ""}),
        (text(",,"), {"swapped": True}),
        (text("," * 300), {"maxsplit": 200}),
    ],
)
def test_other_splits_are_as_wide_as_the_longest_row(ending: Any, changes: dict[str, Any]) -> None:
    assert not prove_rows(split(ending, **changes)).is_proved


@pytest.mark.parametrize(
    "between",
    [
        node("LabelEncoder", "ended", "other", domain="ai.onnx.ml", keys_strings=["a"], values_strings=["b"]),
        node("StringNormalizer", "ended", "other", case_change_action="LOWER"),
        node("Where", "is_it ended x", "other"),
        node("StringConcat", "ended x", "other"),
    ],
)
def test_an_ending_is_forgotten_where_texts_change(between: onnx.NodeProto) -> None:
    nodes = [
        node("StringConcat", "x ending", "ended"),
        between,
        node("StringSplit", "other", "parts counts", delimiter=",", maxsplit=2),
        node("Gather", "parts first", axis=-1),
    ]
    constants = {"ending": text(",,"), "is_it": np.array(True), **FIRST}
    content = model(nodes, {"x": ("N",)}, types={"x": S, "y": S}, constants=constants, opset=20)

    assert "StringSplit is as wide as the longest row" in prove_rows(content).problem


def test_an_ending_of_one_branch_alone_is_not_believed() -> None:
    ended = body([node("StringConcat", "x ending", "e")], "", "e")
    plain = body([node("Identity", "x", "p")], "", "p")
    nodes = [
        node("Greater", "small large", "is_it"),
        node("If", "is_it", "other", then_branch=ended, else_branch=plain),
        node("StringSplit", "other", "parts counts", delimiter=",", maxsplit=2),
        node("Gather", "parts first", axis=-1),
    ]
    constants = {"ending": text(",,"), "small": np.float32(1), "large": np.float32(2), **FIRST}
    content = model(nodes, {"x": ("N",)}, types={"x": S, "y": S}, constants=constants, opset=20)

    assert not prove_rows(content).is_proved


def test_the_counts_of_parts_are_those_of_each_row() -> None:
    nodes = [
        node("StringConcat", "x ending", "ended"),
        node("StringSplit", "ended", "parts y", delimiter=",", maxsplit=2),
    ]
    content = model(nodes, {"x": ("N",)}, types={"x": S, "y": I}, constants={"ending": text(",,")}, opset=20)

    assert prove_rows(content).is_proved
