"""Layers in few nodes: what is joined, what is left as it is, and that the answers stay."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.errors import VariantError
from fitserve_exporters.variants_fusion import fuse_layers


def gelu(root: float = math.sqrt(2), half: float = 0.5) -> bytes:
    """Builds `x (½ (erf(x / √2) + 1))` over (b, 8) as torch's exporter writes it."""
    nodes = [
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["raised"]),
        helper.make_node("Mul", ["half", "raised"], ["share"]),
        helper.make_node("Mul", ["x", "share"], ["y"]),
    ]
    constants = {"root": root, "one": 1.0, "half": half}
    return model(nodes, {name: np.array(value, np.float32) for name, value in constants.items()}, ["b", 8])


def residual() -> bytes:
    """Builds the normalization of a sum over (b, s, 8)."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["inner"]),
        helper.make_node("Add", ["inner", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["y"], axis=-1, epsilon=1e-3),
    ]
    weights = {"scale": np.linspace(0.5, 2, 8, dtype=np.float32), "bias": np.linspace(-1, 1, 8, dtype=np.float32)}
    return model(nodes, weights, ["b", "s", 8])


def model(nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: list[str | int]) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def operators(content: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(content).graph.node]


def answer(content: bytes, x: Array, optimized: str = "") -> Array:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = optimized
    options.log_severity_level = 3  # that an optimized file is for this machine alone
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_gelu_is_one_node_and_the_answers_stay() -> None:
    fused = fuse_layers(gelu())
    assert operators(fused) == ["Gelu"]
    x = np.linspace(-6, 6, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_allclose(answer(fused, x), answer(gelu(), x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", [{"root": 1.5}, {"half": 0.25}])
def test_what_only_looks_like_gelu_stays(other: dict[str, float]) -> None:
    assert operators(fuse_layers(gelu(**other))) == ["Div", "Erf", "Add", "Mul", "Mul"]


def test_a_sum_and_its_normalization_stay_two_nodes_in_the_session_too(tmp_path: Path) -> None:
    fused, x = fuse_layers(residual()), np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    joined, apart = tmp_path / "joined.onnx", tmp_path / "apart.onnx"
    np.testing.assert_array_equal(answer(fused, x, str(apart)), answer(fused, x))
    np.testing.assert_allclose(answer(fused, x), answer(residual(), x, str(joined)), rtol=0, atol=1e-5)
    assert operators(joined.read_bytes()) == ["Tanh", "SkipLayerNormalization"]
    assert operators(apart.read_bytes()) == ["Tanh", "Sum", "LayerNormalization"]


def test_a_model_that_cannot_be_read_is_named() -> None:
    with pytest.raises(VariantError, match="onnxscript cannot rewrite the model: "):
        fuse_layers(b"no model")
