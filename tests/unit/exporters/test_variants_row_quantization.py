"""Products quantized row by row: near fp32, bit-equal beside any neighbour, and NaN stays NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.errors import VariantError
from fitserve_exporters.variants_row_quantization import quantize_rows

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(16, 8)).astype(np.float32)
BIAS = RANDOM.normal(size=8).astype(np.float32)


def graph(nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: list[Any], opset: int = 18) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def gemm(**attributes: Any) -> bytes:
    weight = WEIGHT.T.copy() if attributes.get("transB") else WEIGHT
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)
    return graph([node], {"w": weight, "b": BIAS}, ["rows", 16])


def product(shape: list[Any]) -> bytes:
    return graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, shape)


def layers() -> bytes:
    """Builds Gemm, Tanh, LayerNormalization, MatMul: the last reads rows that are NaN throughout or not at all."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["linear"]),
        helper.make_node("Tanh", ["linear"], ["tanh"]),
        helper.make_node("LayerNormalization", ["tanh", "scale", "b"], ["normal"]),
        helper.make_node("MatMul", ["normal", "last"], ["y"]),
    ]
    weights = {"w": WEIGHT, "b": BIAS, "scale": np.ones(8, np.float32), "last": WEIGHT[:8].copy()}
    return graph(nodes, weights, ["rows", 16])


def operators(content: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(content).graph.node]


def session(content: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def answer(content: bytes, x: Array) -> Array:
    return np.asarray(session(content).run(None, {"x": x})[0])


def rows(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"transB": 1}, {"alpha": 0.5, "beta": 3.0}, {"beta": 0.0}, {"alpha": -2.0, "transB": 1}],
    ids=str,
)
def test_gemm_is_quantized_with_its_attributes(attributes: dict[str, Any]) -> None:
    made = quantize_rows(gemm(**attributes))
    assert "Gemm" not in operators(made)
    x = rows(5, 16)
    expected = answer(gemm(**attributes), x)
    np.testing.assert_allclose(answer(made, x), expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (2, 1, 3, 16), (16,)], ids=str)
def test_matmul_is_quantized_over_any_axes_of_rows(shape: tuple[int, ...]) -> None:
    content = product([*(f"a{axis}" for axis in range(len(shape) - 1)), 16])
    x = rows(*shape)
    expected = answer(content, x)
    found = answer(quantize_rows(content), x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_products_of_one_activation_share_its_quantized_form_and_one_weight() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], [name]) for name in ("q", "k")]
    nodes.append(helper.make_node("Add", ["q", "k"], ["y"]))
    made = quantize_rows(graph(nodes, {"w": WEIGHT}, ["rows", 16]))
    assert operators(made).count("QuantizeLinear") == 1
    tensors = onnx.load_model_from_string(made).graph.initializer
    assert [list(tensor.dims) for tensor in tensors if tensor.data_type == TensorProto.INT8] == [[16, 8]]
    assert "w" not in {tensor.name for tensor in tensors}


def test_a_weight_that_something_else_reads_stays() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["inner"]),
        helper.make_node("MatMul", ["w", "inner_turned"], ["y"]),
        helper.make_node("Transpose", ["inner"], ["inner_turned"], perm=[1, 0]),
    ]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    content = graph(nodes, {"w": WEIGHT}, ["rows", 16])
    made = quantize_rows(content)
    assert operators(made).count("MatMul") == 1
    x = rows(3, 16)
    expected = answer(content, x)
    np.testing.assert_allclose(answer(made, x), expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_names_that_are_taken_are_left_alone() -> None:
    nodes = [
        helper.make_node("Abs", ["x"], ["x.magnitude"]),
        helper.make_node("Mul", ["x.magnitude", "int8.step"], ["x.quantized"]),
        helper.make_node("MatMul", ["x", "w"], ["inner"]),
        helper.make_node("ReduceMax", ["x.quantized", "axes"], ["most"], keepdims=1),
        helper.make_node("Add", ["inner", "most"], ["y"]),
    ]
    weights = {"w": WEIGHT, "int8.step": np.array(2.0, np.float32), "axes": np.array([1])}
    content, x = graph(nodes, weights, ["rows", 16]), rows(4, 16)
    expected = answer(content, x)
    np.testing.assert_allclose(answer(quantize_rows(content), x), expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gemm(transA=1), "expected MatMul or Gemm with constant weights to quantize, found none"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], {}, ["b", 4]), "found none"),
        (
            graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.full((16, 8), np.inf, np.float32)}, [2, 16]
            ),
            "found none",
        ),
        (graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, ["b", 16], 17), "expected opset 18"),
    ],
    ids=["transposed rows", "no product", "infinite weights", "old opset"],
)
def test_what_cannot_be_quantized_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        quantize_rows(content)


HOSTILE = st.sampled_from([0.0, -0.0, 1e4, -1e4, 1e30, 1e-30, 1e-42, 3e38, np.inf, -np.inf, np.nan])


@settings(max_examples=60, deadline=None)
@given(
    hostile=st.lists(HOSTILE, min_size=16, max_size=16),
    position=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_a_row_is_bit_equal_beside_any_neighbour(hostile: list[float], position: int, seed: int) -> None:
    row = np.random.default_rng(seed).normal(size=16).astype(np.float32)
    copies = np.tile(row, (5, 1))
    joined = np.tile(np.array(hostile, np.float32), (5, 1))
    joined[position] = row
    expected = QUANTIZED.run(None, {"x": copies})[0][position]
    assert QUANTIZED.run(None, {"x": joined})[0][position].tobytes() == expected.tobytes()


QUANTIZED = session(quantize_rows(layers()))


@pytest.mark.parametrize("width", [1, 3, 16, 64, 129])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_nan_or_an_infinity_answers_nan_wherever_it_stands(width: int, value: float) -> None:
    weight = np.random.default_rng(2).normal(size=(width, 4)).astype(np.float32)
    content = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, ["rows", width])
    x = rows(width, width)
    np.fill_diagonal(x, value)
    assert np.isnan(answer(quantize_rows(content), x)).all()


def test_nan_passes_a_normalization_before_the_last_product() -> None:
    x = rows(3, 16)
    x[1, 7] = np.nan
    found = QUANTIZED.run(None, {"x": x})[0]
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(found[[0, 2]]).all()


def test_rows_of_zeros_and_of_the_smallest_numbers_answer_the_bias() -> None:
    x = np.zeros((3, 16), np.float32)
    x[1], x[2] = 1e-42, -0.0
    np.testing.assert_array_equal(answer(quantize_rows(gemm()), x), np.tile(BIAS, (3, 1)))


def test_a_column_of_zeros_answers_zeros() -> None:
    weight = WEIGHT.copy()
    weight[:, 3] = 0.0
    content = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, ["rows", 16])
    with np.errstate(all="raise"):
        made = quantize_rows(content)
    assert (answer(made, rows(3, 16))[:, 3] == 0.0).all()


def test_each_row_is_as_near_as_its_own_size_allows() -> None:
    """A scale of the whole batch would round the small rows to zero."""
    sizes = np.float32(10.0) ** np.arange(-20, 21, 4, dtype=np.float32)
    x = rows(len(sizes), 16) * sizes[:, None]
    expected = answer(product(["rows", 16]), x)
    found = answer(quantize_rows(product(["rows", 16])), x)
    assert (np.abs(found - expected).max(axis=1) < 0.02 * np.abs(expected).max(axis=1)).all()
