"""Graphs that compute an axis, a place or a shape from what ONNX Runtime makes otherwise than one would think.

Each couples rows in ONNX Runtime, which is tried; a proof that believes another size or number would not see it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from joinability_world import F, I, Shape, body, ints, model, node, weights
from onnx import TensorProto, helper

from fitserve_contract.joinability.proof import prove_rows

PEAK = [node("ReduceMax", "x axis", "m"), node("Sub", "x m")]
"""Couples rows where `axis`, which the graph computes, is 0."""

PLACES = [node("Squeeze", "count zero_axis", "n"), node("Range", "zero n one", "rows")]
LITERALS: dict[str, Any] = {
    "zero_axis": ints(0),
    "zero": np.int64(0),
    "one": np.int64(1),
    "four": np.int64(4),
    "rest": ints(-1),
}
UNKNOWN = [node("Greater", "small large", "is_it")]
FLAGS: dict[str, Any] = {"small": np.float32(1), "large": np.float32(2)}


def peak(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int = 18, **others: Any) -> bytes:
    return model([*nodes, *PEAK], constants=constants, opset=opset, **others)


def first_rows(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> bytes:
    """Adds the first `end` rows to all."""
    more = [node("Slice", "x from end axis", "first"), node("Add", "x first")]
    return model([*nodes, *more], constants={"from": ints(0), "axis": ints(0), **constants})


def size_from(real: int, believed: int, made: onnx.NodeProto, at: int, **graph: Any) -> bytes:
    """Computes axis 0 where `r` has the size `real` at the place `at`, and axis 1 where it has `believed`."""
    nodes = [
        made,
        node("Shape", "r", "size", start=at, end=at + 1),
        node("Sub", "size real", "d"),
        node("Div", "d gap", "axis"),
        node("Reshape", "i table", "x"),
    ]
    found = {"real": ints(real), "gap": ints(believed - real), "table": ints(0, -1)}
    constants = {**found, **graph.pop("constants", {})}
    return model([*nodes, *PEAK], constants=constants, **graph)


def wide_product() -> bytes:
    nodes = [
        node("Shape", "x", "n", end=1),
        node("Mul", "n big", "b"),
        node("Div", "b big", "again"),
        node("Sub", "n again", "d"),
        node("Div", "d many", "q"),
        node("Sub", "one q", "axis"),
    ]
    return peak(nodes, {"big": ints(2**59), "many": ints(32), "one": ints(1)})


def cast_to_unsigned() -> bytes:
    plain = body([node("Identity", "x", "t")], "", "t")
    mixing = body([node("ReduceMax", "x zero_axis", "m"), node("Sub", "x m", "e")], "", "e")
    nodes = [
        node("Cast", "minus", "u", to=TensorProto.UINT32),
        node("Less", "u one", "c"),
        node("If", "c", then_branch=plain, else_branch=mixing),
    ]
    return model(nodes, constants={"minus": np.int64(-1), "one": np.uint32(1), "zero_axis": ints(0)})


def squeezed_of_no_axes() -> bytes:
    nodes = [
        node("Unsqueeze", "x second", "u"),
        node("Squeeze", "u none", "s"),
        node("ReduceMax", "s last", "m"),
        node("Reshape", "m table", "mm"),
        node("Sub", "x mm"),
    ]
    return model(nodes, constants={"second": ints(1), "none": ints(), "last": ints(-2), "table": ints(-1, 4)})


def picked_by(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> bytes:
    """Picks from the rows, laid flat, by `p`."""
    nodes = [node("Shape", "x", "count", end=1), *PLACES, *nodes, node("Reshape", "x rest", "flat")]
    return model([*nodes, node("Gather", "flat p")], constants={**LITERALS, **constants})


def either_stride() -> bytes:
    wide, narrow = body([node("Identity", "wide", "t")], "", "t"), body([node("Identity", "rows", "e")], "", "e")
    nodes = [node("Mul", "rows four", "wide"), *UNKNOWN]
    return picked_by([*nodes, node("If", "is_it", "p", then_branch=wide, else_branch=narrow)], FLAGS)


def either_offset() -> bytes:
    within = body([node("ArgMax", "x", "t", axis=1, keepdims=0)], "", "t")
    beyond = body([node("Cast", "five", "f", to=I), node("Mul", "f rows", "e")], "", "e")
    chosen = node("If", "is_it", "o", then_branch=within, else_branch=beyond)
    nodes = [node("Mul", "rows four", "wide"), *UNKNOWN, chosen, node("Add", "wide o", "places")]
    return picked_by([*nodes, node("Mod", "places many", "p")], {**FLAGS, "five": np.float32(5), "many": np.int64(8)})


def reshaped_by_a_zero() -> bytes:
    nodes = [
        node("Cast", "nothing", "e", to=I),
        node("Concat", "count e", "t", axis=0),
        node("Reshape", "x t", "x2"),
        node("Gather", "t one", "ee"),
        node("Mul", "rows ee", "starts"),
        node("ArgMax", "x2", "best", axis=1, keepdims=0),
        node("Add", "starts best", "p"),
    ]
    return picked_by(nodes, {"nothing": np.zeros(1, np.float32)})


def rounds(nodes: list[onnx.NodeProto], outputs: str) -> onnx.GraphProto:
    """The body of a loop that carries `a`."""
    graph = body([*nodes, node("Identity", "c", "again")], "", f"again {outputs}")
    for name, number, shape in (("i", I, ()), ("c", TensorProto.BOOL, ()), ("a", F, None)):
        graph.input.append(helper.make_tensor_value_info(name, number, shape))
    return graph


def grown_twice() -> bytes:
    step = rounds([node("Concat", "a a", "b", axis=1)], "b")
    opsets = [helper.make_opsetid("", 18)]
    grow = helper.make_function("own", "Grow", ["v", "t"], ["w"], [node("Loop", "t - v", "w", body=step)], opsets)
    nodes = [
        node("Grow", "x once", "b1", "own"),
        node("Grow", "x twice", "b2", "own"),
        node("Shape", "b1", "s1", start=1),
        node("Shape", "b2", "s2", start=1),
        node("Div", "s2 s1", "q"),
        node("Sub", "two q", "axis"),
    ]
    return peak(nodes, {"once": np.int64(1), "twice": np.int64(2), "two": ints(2)}, functions=[grow])


def before_and_after_a_round() -> bytes:
    step = rounds([node("Slice", "a zero half one", "b"), node("Identity", "a", "s")], "b s")
    nodes = [
        node("Loop", "once - x", "b s", body=step),
        node("Shape", "b", "after", start=1, end=2),
        node("Shape", "s", "before", start=2, end=3),
        node("Div", "before after", "q"),
        node("Sub", "two q", "axis"),
    ]
    return peak(nodes, {"once": np.int64(1), "two": ints(2), "zero": ints(0), "half": ints(2), "one": ints(1)})


def softmax_of_another_opset() -> bytes:
    own = helper.make_function("own", "S", ["v"], ["w"], [node("Softmax", "v", "w", axis=1)], [_of("", 13)])
    nodes = [
        node("Transpose", "x", "t", perm=[1, 2, 0]),
        node("S", "t", "w", "own"),
        node("Transpose", "w", perm=[2, 0, 1]),
    ]
    return model(nodes, {"x": ("N", 3, 4)}, opset=11, functions=[own])


def _of(domain: str, version: int) -> onnx.OperatorSetIdProto:
    return helper.make_opsetid(domain, version)


def reference_of_no_function() -> bytes:
    softmax = node("Softmax", "x", axis=0)
    softmax.attribute[0].ref_attr_name = "along"
    return model([softmax])


def resized(mode: str, *sizes: int, opset: int = 17, **attributes: Any) -> bytes:
    operator, inputs = ("Upsample", "x s") if opset < 10 else ("Resize", "x - s")
    scales = np.array([1, *[2] * len(sizes)], np.float32)
    if "axes" in attributes:
        scales = scales[1:]
    return model([node(operator, inputs, mode=mode, **attributes)], {"x": ("N", *sizes)}, {"s": scales}, opset)


POOLED: dict[str, Any] = {"inputs": {"i": ("N", 1, 9)}, "opset": 19}
NARROW: dict[str, Any] = {"inputs": {"i": ("N", 1, 3)}, "opset": 19}
IMAGE: dict[str, Any] = {"inputs": {"i": ("N", 1, 4, 4)}, "opset": 18}
COLUMNS: dict[str, Any] = {"inputs": {"i": ("N", 4)}, "opset": 18}
SPREAD: dict[str, Any] = {"auto_pad": "SAME_UPPER", "dilations": [2], "kernel_shape": [3], "strides": [2]}
WIDE: dict[str, Any] = {"kernel_shape": [4], "strides": [2]}


def chosen_by(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> bytes:
    """Takes the axis that the first of `e` less the number `near` is."""
    more = [node("Gather", "e second", "one_of"), node("Sub", "one_of near", "axis")]
    return peak([*nodes, *more], {"second": ints(1), **constants})


def short_axis(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> bytes:
    """Takes axis 0 where the vector `q` has one element, and axis 1 where it has none."""
    return peak([*nodes, node("Shape", "q", "s"), node("Sub", "one s", "axis")], {"one": ints(1), **constants})


BACKWARDS: dict[str, Any] = {"from": ints(-100), "to": ints(-1000), "of": ints(0), "by": ints(-1), "c": weights(2)}
OPEN_END: dict[str, Any] = {"from": ints(0), "to": ints(2**63 - 1), "of": ints(0), "by": ints(-1), "c": weights(2)}

COUPLED = {
    "a product of sizes wraps around": wide_product(),
    "a cast to int32 wraps around": first_rows(
        [node("Cast", "big", "b", to=TensorProto.INT32), node("Cast", "b", "end", to=I)], {"big": ints(2**32 + 1)}
    ),
    "a product of int32 wraps around": first_rows(
        [node("Mul", "k k", "s"), node("Cast", "s", "s64", to=I), node("Add", "s64 o", "end")],
        {"k": np.array([2**16], np.int32), "o": ints(1)},
    ),
    "a cast to an unsigned type wraps around": cast_to_unsigned(),
    "a slice backwards from before the first": short_axis([node("Slice", "c from to of by", "q")], BACKWARDS),
    "a slice backwards to an open end": short_axis([node("Slice", "c from to of by", "q")], OPEN_END),
    "Squeeze of no axes": squeezed_of_no_axes(),
    "ReduceProd of nothing": peak(
        [
            node("ReduceProd", "c", "q", noop_with_empty_axes=1),
            node("Shape", "q", "s"),
            node("Sub", "s one", "a"),
            node("Sub", "one a", "axis"),
        ],
        {"c": ints(2, 3), "one": ints(1)},
    ),
    "a product as floats": chosen_by(
        [node("ReduceProd", "c", "p", keepdims=0), node("Mod", "p two", "r"), node("Concat", "r r", "e", axis=0)],
        {"c": ints(2**31 - 1, 2**31 - 1), "two": ints(2), "near": ints(0)},
    ),
    "a remainder as floats": chosen_by(
        [node("Mod", "c d", "r", fmod=1), node("Min", "r one", "e")],
        {"c": ints(2**63 - 1, 2**63 - 1), "d": ints(2**40), "one": ints(1), "near": ints(0)},
    ),
    "a sum over nothing": model(
        [
            node("MatMul", "x w", "a"),
            node("Slice", "a one one two", "nothing"),
            node("ReduceSum", "nothing before", keepdims=0),
        ],
        constants={"w": weights(3, 4, 2), "one": ints(1), "two": ints(2), "before": ints(-3)},
    ),
    "linear of two axes": resized("linear", 4),
    "linear of three axes": resized("linear", 4, 4),
    "linear of the last of two axes": resized("linear", 4, opset=19, axes=[1]),
    "cubic of two axes": resized("cubic", 4),
    "Upsample of two axes": resized("linear", 4, opset=9),
    "a function of another operator set": softmax_of_another_opset(),
    "a reference of no function": reference_of_no_function(),
    "places of one stride or another": either_stride(),
    "places within the row or beyond": either_offset(),
    "a loop in a function called twice": grown_twice(),
    "sizes before and after a round": before_and_after_a_round(),
    "Reshape by a 0 that is not known": reshaped_by_a_zero(),
    "the aspect ratio is kept": size_from(
        4,
        8,
        node("Resize", "i - - sizes", "r", axes=[2, 3], keep_aspect_ratio_policy="not_larger", mode="nearest"),
        3,
        constants={"sizes": ints(4, 8)},
        **IMAGE,
    ),
    **{f"{name} of spread windows": size_from(4, 5, node(name, "i", "r", **SPREAD), 2, **POOLED)
       for name in ("MaxPool", "AveragePool", "LpPool")},
    **{f"{name} of windows wider than the axis": size_from(1, 0, node(name, "i", "r", **WIDE), 2, **NARROW)
       for name in ("MaxPool", "AveragePool", "LpPool")},
    "columns of a feature vector": size_from(
        2, 4, node("FeatureVectorizer", "i", "r", "ai.onnx.ml", inputdimensions=[2]), 1, **COLUMNS
    ),
    "classes of a linear classifier": size_from(
        2,
        3,
        node(
            "LinearClassifier",
            "i",
            "label r",
            "ai.onnx.ml",
            coefficients=[0.1] * 8,
            intercepts=[0.0, 0.0],
            classlabels_ints=[0, 1, 2],
        ),
        1,
        **COLUMNS,
    ),
    "features of a constant": size_from(
        1,
        4,
        node("ArrayFeatureExtractor", "c places", "r", "ai.onnx.ml"),
        0,
        **COLUMNS,
        constants={"c": weights(5), "places": ints(0, 1, 2, 3)},
    ),
    "keys of attention": model(
        [
            node("Attention", "q k k", "o r"),
            node("Shape", "r", "size", start=2, end=3),
            node("Sub", "size real", "d"),
            node("Mul", "d one", "axis"),
            node("ReduceMax", "q axis", "m", keepdims=0),
            node("Reshape", "m last", "mm"),
            node("Sub", "q mm"),
        ],
        {"q": ("N", 1, 3, 8), "k": ("N", 1, 2, 8)},
        {"real": ints(2), "one": ints(1), "last": ints(1, 1, -1, 8)},
        opset=23,
    ),
    "a constant beside its skip": model(
        [node("SkipLayerNormalization", "c x g b", domain="com.microsoft")],
        {"x": ("N", 2, 4)},
        {"c": weights(1, 2, 4), "g": weights(4), "b": weights(4)},
    ),
}  # fmt: skip


def couples(content: bytes) -> bool:
    """A row of 16 differs beside others from the same row beside copies of itself, or there is not one for each."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random, joined = np.random.default_rng(0), dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]()
    for entry in session.get_inputs():
        joined[entry.name] = random.normal(size=(16, *entry.shape[1:])).astype(np.float32)
        joined[entry.name][1::2] = np.nan if any(mode in content for mode in (b"linear", b"cubic")) else 1e6
    (found,) = session.run(None, joined)
    for row in range(0, 16, 2):
        copies = {name: np.repeat(array[row : row + 1], 16, 0) for name, array in joined.items()}
        (alone,) = session.run(None, copies)
        if len(found) != 16 or not np.array_equal(found[row], alone[row], equal_nan=True):
            return True
    return False


@pytest.mark.parametrize("content", COUPLED.values(), ids=COUPLED)
def test_what_the_runtime_makes_otherwise_is_not_proved(content: bytes) -> None:
    assert couples(content)
    assert not prove_rows(content).is_proved


@pytest.mark.parametrize(("number", "is_proved"), [(F, True), (TensorProto.DOUBLE, False)])
@pytest.mark.parametrize("operator", ["Sin", "Cos"])
def test_sines_of_doubles_round_by_their_neighbours(operator: str, number: int, is_proved: bool) -> None:
    given = model([node(operator, "x")], types={"x": number})
    cast = model([node("Cast", "x", "d", to=number), node("Neg", "d", "e"), node(operator, "e")])

    assert [prove_rows(content).is_proved for content in (given, cast)] == [is_proved, is_proved]
    assert is_proved or "doubles rounds by what the neighbours are" in prove_rows(cast).problem


@pytest.mark.parametrize(("end", "is_proved"), [(2**63 - 1, True), (2**31 - 1, True), (10**9, True), (10**6, False)])
def test_a_slice_to_an_open_end_takes_every_row(end: int, is_proved: bool) -> None:
    content = model([node("Slice", "x from to")], constants={"from": ints(0), "to": ints(end)})

    assert prove_rows(content).is_proved is is_proved


def test_losses_of_each_row_are_proved_and_their_sums_not() -> None:
    inputs: dict[str, Shape] = {"x": ("N", 3, 5), "l": ("N", 5)}
    each = model([node("SoftmaxCrossEntropyLoss", "x l", reduction="none")], inputs, types={"l": I})
    summed = model([node("SoftmaxCrossEntropyLoss", "x l")], inputs, types={"l": I})

    assert prove_rows(each).is_proved
    assert "adds up" in prove_rows(summed).problem


@pytest.mark.parametrize(("stopwords", "is_proved"), [([], True), (["a"], False)])
def test_strings_are_normalized_one_by_one_unless_some_are_dropped(stopwords: list[str], is_proved: bool) -> None:
    normalizer = node(
        "StringNormalizer", "x", case_change_action="NONE", **({"stopwords": stopwords} if stopwords else {})
    )
    content = model([normalizer], {"x": ("N",)}, types={"x": TensorProto.STRING})

    assert prove_rows(content).is_proved is is_proved


def test_the_largest_of_64_bit_integers_is_not_taken_for_it() -> None:
    # Some processors compare their lower halves.
    content = chosen_by(
        [node("Max", "c least", "larger"), node("Min", "larger most", "e")],
        {"c": ints(1, 2**31, 2**60), "least": np.int64(1), "most": np.int64(2), "near": ints(1)},
    )

    assert not prove_rows(content).is_proved
