"""Held-out rows beside hostile ones: what couples rows is refused, unless the fp32 file couples them as well."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fitserve_exporters.candidate.candidate import Array, Candidate, HeldOut, InputSpec
from fitserve_exporters.errors import VariantError
from fitserve_exporters.sessions import CPU, OrtSession
from fitserve_exporters.variants_neighbours import OpenFile, prove_neighbours
from fitserve_exporters.variants_row_quantization import quantize_rows

WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def candidate() -> Candidate:
    held_out = HeldOut({"x": np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)}, None, "made up")
    return Candidate(nn.Linear(6, 4), (InputSpec("x", torch.float32, ("batch", 6)),), ("y",), held_out)


def file(*nodes: onnx.NodeProto, **weights: Array) -> OpenFile:
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 6), ("y", 4))
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in {"w": WEIGHT, **weights}.items()]
    graph = helper.make_graph(list(nodes), "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return opened(model.SerializeToString())


def opened(content: bytes) -> OpenFile:
    return OpenFile(content, OrtSession(content, CPU))


def plain() -> OpenFile:
    return file(helper.make_node("MatMul", ["x", "w"], ["y"]))


def coupled() -> OpenFile:
    """Builds what `quantize_dynamic` makes: one scale of the whole batch."""
    weight, scale = np.rint(WEIGHT * 50).astype(np.int8), np.array(1 / 50, np.float32)
    return file(
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w8", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "step"], ["both"]),
        helper.make_node("Mul", ["real", "both"], ["y"]),
        w8=weight,
        step=scale,
    )


def deaf() -> OpenFile:
    """Builds a product that quantizes by constant scales and answers NaN with numbers."""
    return file(
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["near"]),
        helper.make_node("MatMul", ["near", "w"], ["y"]),
        step=np.array(0.05, np.float32),
        zero=np.array(128, np.uint8),
    )


def test_rows_with_scales_of_their_own_are_independent() -> None:
    record = prove_neighbours(candidate(), opened(quantize_rows(plain().content)), plain()).to_json()
    assert record["rows_are_independent"]
    assert record["is_complete"]
    assert record["fp32_problem"] is None
    assert (record["held_out_count"], record["batch_sizes"]) == (4, [3, 2, 8])
    assert record["hostile_count"] > 5


def test_a_scale_of_the_whole_batch_is_refused() -> None:
    with pytest.raises(VariantError, match=r"^rows (depend on their neighbours|are not proved independent), those of"):
        prove_neighbours(candidate(), coupled(), plain())


def test_the_trial_refuses_what_the_graph_was_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitserve_contract.joinability.proof import prove_rows

    proved = prove_rows(plain().content)
    monkeypatch.setattr("fitserve_exporters.variants_neighbours.prove_rows", lambda _: proved)
    with pytest.raises(VariantError, match=r"^rows depend on their neighbours, those of the fp32 file do not: row"):
        prove_neighbours(candidate(), coupled(), plain())


def test_the_graph_refuses_what_the_trial_did_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitserve_exporters.variants_neighbours.trial_problem", lambda *_, **__: "")
    with pytest.raises(
        VariantError, match=r"rows are not proved independent, those of the fp32 file are: node .*Dynamic"
    ):
        prove_neighbours(candidate(), coupled(), plain())


def test_rows_need_not_be_independent_where_those_of_the_fp32_file_are_not() -> None:
    record = prove_neighbours(candidate(), coupled(), coupled()).to_json()
    assert not record["rows_are_independent"]
    assert "depends on its neighbours" in record["fp32_problem"]


def test_a_number_in_place_of_nan_is_refused() -> None:
    with pytest.raises(VariantError, match="output 'y': expected NaN for a row with NaN as of fp32, got 4 numbers"):
        prove_neighbours(candidate(), deaf(), plain())
