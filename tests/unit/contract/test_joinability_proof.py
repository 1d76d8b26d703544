"""Proofs that rows are independent: a table of graphs by family of operators, and what is said of those that mix."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from joinability_world import F, I, ints, model, node, weights
from onnx import TensorProto, helper

from fitserve_contract.joinability.proof import RowProof, prove_rows
from fitserve_contract.onnx_wire import OnnxFileError


def flat_places(offset: str) -> list[onnx.NodeProto]:
    """Picks from (N, S), laid out flat, by the index of the row times S plus an offset."""
    return [
        node("Shape", "x", "s"),
        node("Gather", "s first", "n"),
        node("Gather", "s second", "t"),
        node("Range", "first n second", "i"),
        node("Range", "first t second", "among"),
        node("ArgMax", "x", "best", axis=1),
        node("Cast", "x", "any", to=I),
        node("Unsqueeze", "i behind", "column"),
        node("Mul", "column t", "starts"),
        node("Add", f"starts {offset}", "places"),
        node("Reshape", "x last", "flat"),
        node("Gather", "flat places"),
    ]


FLAT = {"first": np.int64(0), "second": np.int64(1), "last": ints(-1), "behind": ints(1)}

PROVED = {
    "elementwise": model([node("Relu", "x", "a"), node("Add", "a x")]),
    "constant of one row": model([node("Mul", "x c")], constants={"c": weights(1, 4)}),
    "reduction off the rows": model([node("ReduceMax", "x a", keepdims=0)], constants={"a": ints(-1)}),
    "reduction by attribute": model([node("ReduceMax", "x", axes=[1])], opset=12),
    "reduction of nothing": model([node("ReduceSum", "x", noop_with_empty_axes=1)]),
    "softmax": model([node("Softmax", "x")]),
    "old softmax over the rest": model([node("Softmax", "x")], {"x": ("N", 2, 3)}, opset=11),
    "layer normalization": model([node("LayerNormalization", "x w")], constants={"w": weights(4)}),
    "convolution, flattened": model(
        [node("Conv", "x w", "a"), node("MaxPool", "a", "b", kernel_shape=[2, 2]), node("Reshape", "b s")],
        {"x": ("N", 1, 5, 5)},
        {"w": weights(2, 1, 2, 2), "s": ints(-1, 18)},
    ),
    "linear layer": model([node("Gemm", "x w b")], constants={"w": weights(4, 2), "b": weights(2)}),
    "rows merged with time and parted again": model(
        [
            node("Shape", "x", "s"),
            node("Reshape", "x flat", "a"),
            node("MatMul", "a w", "b"),
            node("Gather", "s first", "n"),
            node("Gather", "s second", "t"),
            node("Concat", "n t rest", "back", axis=0),
            node("Reshape", "b back"),
        ],
        {"x": ("N", "T", 4)},
        {"flat": ints(-1, 4), "w": weights(4, 3), "first": ints(0), "second": ints(1), "rest": ints(3)},
    ),
    "heads folded into rows": model(
        [node("Reshape", "x a", "b"), node("Softmax", "b", "c"), node("Reshape", "c d")],
        {"x": ("N", 2, 3, 4)},
        {"a": ints(-1, 3, 4), "d": ints(-1, 2, 3, 4)},
    ),
    "time major": model(
        [
            node("Transpose", "x", "a", perm=[1, 0, 2]),
            node("GRU", "a w r", "b h", hidden_size=2),
            node("Squeeze", "h z"),
        ],
        {"x": ("N", 5, 3)},
        {"w": weights(1, 6, 3), "r": weights(1, 6, 2), "z": ints(0)},
    ),
    "attention of two inputs": model(
        [
            node("Transpose", "k", "t", perm=[0, 2, 1]),
            node("MatMul", "q t", "s"),
            node("Softmax", "s", "p"),
            node("MatMul", "p k"),
        ],
        {"q": ("N", "S", 4), "k": ("N", "T", 4)},
    ),
    "embedding": model([node("Gather", "w x")], {"x": ("N", "S")}, {"w": weights(9, 4)}, types={"x": I}),
    "class token": model(
        [
            node("Shape", "x", "s", end=1),
            node("Concat", "s one", "t", axis=0),
            node("Expand", "c t", "e"),
            node("Concat", "e x", axis=1),
        ],
        {"x": ("N", 3, 4)},
        {"one": ints(1, 4), "c": weights(1, 1, 4)},
    ),
    "token of each row": model(
        [
            node("Shape", "x", "s", end=1),
            node("Squeeze", "s", "n"),
            node("Range", "zero n one", "r"),
            node("Unsqueeze", "r last", "i"),
            node("Unsqueeze", "k last", "j"),
            node("Concat", "i j", "ij", axis=-1),
            node("GatherND", "x ij"),
        ],
        {"x": ("N", "S", 4), "k": ("N",)},
        {"zero": np.int64(0), "one": np.int64(1), "last": ints(-1)},
        types={"k": I},
    ),
    "masks by their places, as TorchScript writes it": model(flat_places("among"), {"x": ("N", "S")}, FLAT),
    "the largest of each row, by its place": model(flat_places("best"), {"x": ("N", "S")}, FLAT),
    "unnamed and named first axes": model([node("Add", "x z")], {"x": ("N", 4), "z": (None, 4)}),
    "default of an input": model([node("Mul", "x c")], {"x": ("N", 4), "c": (1, 4)}, {"c": weights(1, 4)}),
    "mixed, but read by nobody": model([node("ReduceMax", "x", "m"), node("Relu", "x")]),
    "shape alone of the mixed": model([node("ReduceSum", "x", "m", keepdims=1), node("Relu", "x")]),
    "trees": model(
        [
            node(
                "TreeEnsembleRegressor",
                "x",
                domain="ai.onnx.ml",
                n_targets=1,
                nodes_treeids=[0],
                nodes_nodeids=[0],
                nodes_featureids=[0],
                nodes_modes=["LEAF"],
                nodes_values=[0.0],
                nodes_truenodeids=[0],
                nodes_falsenodeids=[0],
                target_treeids=[0],
                target_nodeids=[0],
                target_ids=[0],
                target_weights=[1.0],
            )
        ]
    ),
    "einsum": model([node("Einsum", "x w", equation="bi,io->bo")], constants={"w": weights(4, 2)}),
    "static quantization": model(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")],
        constants={"s": np.float32(0.1), "z": np.uint8(128)},
    ),
    "dropout that does not train": model([node("Dropout", "x")]),
}


@pytest.mark.parametrize("content", PROVED.values(), ids=PROVED)
def test_independent_rows_are_proved(content: bytes) -> None:
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    assert prove_rows(content) == RowProof("")


def rowwise_int8(axis: int = 0) -> bytes:
    """What our own int8 variants do: a scale for each row of (N * S, K), computed by plain operators."""
    nodes = [
        node("Reshape", "x flat", "a"),
        node("Abs", "a", "b"),
        node("ReduceMax", "b last", "c", keepdims=0),
        node("Mul", "c inverse", "d"),
        node("Max", "d least", "scale"),
        node("Shape", "scale", "count"),
        node("ConstantOfShape", "count", "zero", value=helper.make_tensor("v", TensorProto.UINT8, [1], [128])),
        node("QuantizeLinear", "a scale zero", "q", axis=axis),
        node("MatMulInteger", "q w zero", "i"),
        node("Cast", "i", "f", to=F),
        node("Mul", "f columns", "g"),
        node("Unsqueeze", "scale last", "rows"),
        node("Mul", "g rows", "h"),
        node("Shape", "x", "s"),
        node("Slice", "s from to", "outer"),
        node("Concat", "outer width", "back", axis=0),
        node("Reshape", "h back"),
    ]
    constants = {
        "flat": ints(-1, 4),
        "last": ints(1),
        "inverse": np.float32(1 / 127),
        "least": np.float32(1e-9),
        "w": np.ones((4, 3), np.int8),
        "columns": weights(3),
        "from": ints(0),
        "to": ints(2),
        "width": ints(3),
    }
    return model(nodes, {"x": ("N", "S", 4)}, constants, opset=21)


def test_our_own_int8_rows_are_proved() -> None:
    assert prove_rows(rowwise_int8()) == RowProof("")


def test_a_row_scale_along_another_axis_is_not() -> None:
    assert "QuantizeLinear" in prove_rows(rowwise_int8(axis=1)).problem


MIXED = {
    "ReduceMax over axis 0": model([node("ReduceMax", "x a")], constants={"a": ints(0)}),
    "ReduceMax over axis 0 ": model([node("ReduceMax", "x", "m"), node("Div", "x m")]),
    "ReduceMean over axis 0": model([node("ReduceMean", "x", axes=[-2])], opset=12),
    "ReduceSum over axes that are not known": model(
        [node("ReduceSum", "x a")], {"x": ("N", 4), "a": ("N",)}, types={"a": I}
    ),
    "Softmax over axis 0": model([node("Softmax", "x", axis=0)]),
    "MeanVarianceNormalization over axis 0": model([node("MeanVarianceNormalization", "x")], {"x": ("N", 2, 3, 3)}),
    "BatchNormalization in training mode": model(
        [node("BatchNormalization", "x w w w w", "y m v", training_mode=1)], constants={"w": weights(4)}
    ),
    "Dropout in training mode draws": model(
        [node("Dropout", "x r t")], constants={"r": np.float32(0.5), "t": np.bool_(True)}
    ),
    "RandomNormalLike draws random": model([node("RandomNormalLike", "x", "r"), node("Add", "x r")]),
    "RandomNormal draws random": model([node("RandomNormal", "", "r", shape=[1, 4]), node("Add", "x r")]),
    "no rule for com.acme:Foo": model([node("Foo", "x", domain="com.acme")]),
    "DynamicQuantizeLinear scales": model([node("DynamicQuantizeLinear", "x", "y s z")]),
    "DynamicQuantizeMatMul": model(
        [node("DynamicQuantizeMatMul", "x w s", domain="com.microsoft")],
        constants={"w": np.ones((4, 2), np.int8), "s": np.float32(1)},
    ),
    "Add with a constant along axis 0": model([node("Add", "x c")], constants={"c": weights(3, 4)}),
    "Add with a constant along axis": model([node("Add", "x c")], {"x": ("N",)}, {"c": weights(3)}),
    "Add of rows along different axes": model([node("Add", "x z")], {"x": ("N", 1), "z": ("N",)}),
    "Div reads the number of rows": model(
        [node("Shape", "x", "s", end=1), node("Cast", "s", "c", to=F), node("Div", "x c")]
    ),
    "Add reads the places of the rows": model(
        [
            node("Shape", "x", "s", end=1),
            node("Squeeze", "s", "n"),
            node("Range", "zero n one", "r"),
            node("Add", "x r"),
        ],
        {"x": ("N",)},
        {"zero": np.int64(0), "one": np.int64(1)},
        types={"x": I},
    ),
    "Slice of axis 0": model([node("Slice", "x b e a")], constants={"b": ints(1), "e": ints(9), "a": ints(0)}),
    "Gather over axis 0": model([node("Gather", "x i")], constants={"i": ints(0)}),
    "Reshape to (2, ?) tears": model([node("Reshape", "x s")], {"x": ("N", 2, 4)}, {"s": ints(2, -1)}),
    "Reshape leaves rows to an axis": model([node("Reshape", "x s")], {"x": ("N", 5)}, {"s": ints(-1, 2)}),
    "Add reads the places of the rows  ": model(flat_places("any"), {"x": ("N", "S")}, FLAT),
    "MatMul over axis": model([node("Transpose", "x", "t"), node("MatMul", "t x")]),
    "MatMul of rows": model([node("Transpose", "x", "t"), node("MatMul", "x t")]),
    "CumSum over axis 0": model([node("CumSum", "x a")], constants={"a": np.int64(0)}),
    "TopK over axis 0": model([node("TopK", "x k", "y i", axis=0)], constants={"k": ints(1)}),
    "Squeeze of every axis that is 1": model([node("Squeeze", "x")], {"x": ("N", 1, 4)}),
    "Concat over axis 0 of rows and constants": model([node("Concat", "x c", axis=0)], constants={"c": weights(1, 4)}),
    "NonZero lists": model([node("NonZero", "x")]),
    "Trilu over axis 0": model([node("Trilu", "x")]),
    "LSTM over axis 0": model(
        [node("LSTM", "x w r", hidden_size=2)], {"x": ("N", 5, 3)}, {"w": weights(1, 8, 3), "r": weights(1, 8, 2)}
    ),
    "GatherElements of a constant along the rows": model(
        [node("GatherElements", "w x", axis=1)], {"x": ("N", 2)}, {"w": weights(9, 4)}, types={"x": I}
    ),
    "its rows are axis 1": model([node("Transpose", "x")]),
    "rows merged with another axis": model([node("Reshape", "x s")], constants={"s": ints(-1)}),
    "does not depend on the inputs": model([node("Identity", "c")], constants={"c": weights(4)}),
    "depends on the number of rows": model([node("Shape", "x")]),
    "MatMul sums over an axis that may have no elements": model(
        [node("MatMul", "x w")], {"x": ("N", 0)}, {"w": weights(0, 2)}
    ),
    "no rule for operator set 99": model([node("Relu", "x")], opset=99),
    "no rule for operator set 6": model([node("Add", "x x")], opset=6),
    "its first axis is fixed": model([node("Relu", "x")], {"x": (1, 3)}),
    "it is a scalar": model([node("Relu", "x")], {"x": ()}),
    "different names": model([node("Add", "x z")], {"x": ("N", 4), "z": ("M", 4)}),
    "is its first axis and another": model([node("Relu", "x")], {"x": ("N", "N")}),
    "no inputs that carry rows": model([node("Relu", "c")], {"c": (1, 4)}, {"c": weights(1, 4)}),
}


@pytest.mark.parametrize(("text", "content"), MIXED.items(), ids=MIXED)
def test_what_mixes_rows_is_named(text: str, content: bytes) -> None:
    proof = prove_rows(content)

    assert not proof.is_proved
    assert _stem(text) in proof.problem


def _stem(text: str) -> str:
    return text.strip().removesuffix(" tears").replace("(2, ?)", "(2, ")


def test_the_first_node_that_mixes_is_named_not_the_last() -> None:
    peak = helper.make_node("ReduceMax", ["x"], ["m"], name="peak", keepdims=1)
    content = model([peak, node("Div", "x m", "d"), node("Relu", "d")])

    assert prove_rows(content).problem == "node 'peak' (ReduceMax over axis 0)"


def test_a_node_without_name_is_named_by_its_output() -> None:
    assert prove_rows(MIXED["CumSum over axis 0"]).problem == "node 'y' (CumSum over axis 0)"


@pytest.mark.parametrize(("axis", "is_proved"), [("S", True), ("?", False), ("unk__3", False)])
def test_equal_names_are_equal_sizes(axis: str, is_proved: bool) -> None:
    content = model(
        [node("Shape", "z", "s", start=1), node("Concat", "open s", "t", axis=0), node("Reshape", "x t")],
        {"x": ("N", axis), "z": ("N", axis)},
        {"open": ints(-1)},
    )

    assert prove_rows(content).is_proved == is_proved


def test_maps_are_left_out() -> None:
    trees = onnx.load_from_string(model([node("Relu", "x"), node("ZipMap", "y", "z", domain="ai.onnx.ml")]))
    kind = helper.make_map_type_proto(I, helper.make_tensor_type_proto(F, ()))
    trees.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(kind)))

    assert prove_rows(trees.SerializeToString()).is_proved


@pytest.mark.parametrize("content", [b"", b"no model", b"\x3a\x05ab"])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(OnnxFileError, match=r"file 'model\.onnx'"):
        prove_rows(content)
