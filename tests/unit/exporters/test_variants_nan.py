"""NaN in a file with constant scales: it stays where the fp32 file answers NaN, in its own row alone."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fitserve_exporters.candidate.candidate import Array, Arrays
from fitserve_exporters.variants_nan import keep_nan

ROW: Arrays = {"x": np.ones((1, 2, 3), np.float32), "z": np.ones((1,), np.float32), "n": np.ones((1, 2), np.int64)}


def model(*nodes: NodeProto) -> bytes:
    """Builds a model of x (batch, 2, 3), z (batch,) and n (batch, 2) with outputs y (batch, 2, 3) and s (batch,)."""
    shapes: dict[str, list[str | int | None]] = {
        "x": ["batch", 2, 3],
        "z": ["batch"],
        "n": ["batch", 2],
        "y": ["batch", 2, 3],
        "s": ["batch"],
    }
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.INT64 if name == "n" else TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    constants = {"step": np.float32(0.1), "zero": np.uint8(128), "half": np.float32(0.5)}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [values[k] for k in "xzn"], [values[k] for k in "ys"], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def plain() -> bytes:
    return model(helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["z"], ["s"]))


def quantized() -> bytes:
    nodes = []
    for source, target in (("x", "y"), ("z", "s")):
        nodes.append(helper.make_node("QuantizeLinear", [source, "step", "zero"], [f"{target}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{target}.q", "step", "zero"], [target]))
    return model(*nodes)


def answers(content: bytes, inputs: Arrays) -> list[Array]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return [np.asarray(answer) for answer in session.run(["y", "s"], inputs)]


def three_rows() -> Arrays:
    return {name: np.repeat(array, 3, axis=0) for name, array in ROW.items()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_it_stays_in_its_row_and_in_the_outputs_that_its_input_reaches(value: float) -> None:
    inputs = three_rows()
    inputs["x"][1, 0, 2] = value
    inputs["z"][2] = value
    y, s = answers(keep_nan(quantized(), plain(), ROW), inputs)
    assert np.isnan(y).all(axis=(1, 2)).tolist() == [False, True, False]
    assert np.isnan(s).tolist() == [False, False, True]


def test_numbers_stay_what_they_are() -> None:
    inputs = three_rows()
    for before, after in zip(
        answers(quantized(), inputs), answers(keep_nan(quantized(), plain(), ROW), inputs), strict=True
    ):
        np.testing.assert_array_equal(after, before)


def test_two_inputs_reach_one_output() -> None:
    both = model(
        helper.make_node("Constant", [], ["axes"], value_ints=[1, 2]),
        helper.make_node("Unsqueeze", ["z", "axes"], ["column"]),
        helper.make_node("Add", ["x", "column"], ["y"]),
        helper.make_node("Identity", ["z"], ["s"]),
    )
    made = keep_nan(quantized(), both, ROW)
    for name in "xz":
        inputs = three_rows()
        inputs[name][0] = np.nan
        assert np.isnan(answers(made, inputs)[0]).all(axis=(1, 2)).tolist() == [True, False, False]


def test_a_model_that_has_an_answer_to_nan_keeps_it() -> None:
    guarded = model(
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "half", "x"], ["y"]),
        helper.make_node("Identity", ["z"], ["s"]),
    )
    inputs = three_rows()
    inputs["x"][1] = np.nan
    y, s = answers(keep_nan(quantized(), guarded, ROW), inputs)
    assert np.isfinite(y).all()
    assert np.isfinite(s).all()
