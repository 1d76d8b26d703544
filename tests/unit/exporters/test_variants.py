"""Variants: what is made, what holds, and what is refused while the version goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fitserve_contract.manifest import read_manifest
from fitserve_contract.repository import verify_checksums
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Array, Candidate, HeldOut, InputSpec, Tolerance
from fitserve_exporters.errors import ExportError, VariantError
from fitserve_exporters.graph.assumptions import Assumptions
from fitserve_exporters.graph.onnx_export import ExportedGraph, describe, export_onnx
from fitserve_exporters.publishing.publish import publish_candidate
from fitserve_exporters.variants import make_variants, read_choice
from fitserve_exporters.variants_fusion import attention_count, fuse_layers
from fitserve_exporters.variants_precision import halve
from fitserve_exporters.variants_quantize import check_constant_scales, checked_calibration
from fitserve_exporters.variants_speed import SpeedRatio, is_faster


@pytest.fixture(autouse=True)
def one_call_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here is real, and short: no test judges a time."""
    monkeypatch.setattr("fitserve_exporters.variants_speed._CALLS_S", 0.0)
    monkeypatch.setattr("fitserve_exporters.latency._BUDGET_S", 0.0)


class SelfAttention(nn.Module):
    """Two attention layers of four heads over (B, S, 16), with padding masked out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(16, 16) for _ in range(4)) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for query, key, value, out in self.layers:  # type: ignore[misc]
            q, k, v = (linear(x).view(x.shape[0], x.shape[1], 4, 4).transpose(1, 2) for linear in (query, key, value))
            allowed = mask.bool()[:, None, None, :].expand(-1, 1, x.shape[1], -1)
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
            x = x + out(y.transpose(1, 2).reshape(x.shape))
        return x


OPERATORS = {nn.Linear: "Gemm", nn.Conv2d: "Conv", nn.ReLU: "Relu", nn.Tanh: "Tanh", nn.Flatten: "Flatten"}


def random(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def attending() -> Candidate:
    torch.manual_seed(0)
    mask = np.ones((12, 9), np.int64)
    mask[1, 4:] = 0
    inputs = {"x": random(12, 9, 16), "mask": mask}
    specs = (
        InputSpec("x", torch.float32, ("batch", "sequence", 16)),
        InputSpec("mask", torch.int64, ("batch", "sequence")),
    )
    return Candidate(SelfAttention(), specs, ("y",), HeldOut(inputs, None, "made up"))


def classifier(*layers: nn.Module, shape: tuple[int, ...] = (8,), count: int = 64) -> Candidate:
    torch.manual_seed(0)
    module, images = nn.Sequential(*layers), random(count, *shape)
    with torch.inference_mode():
        labels = module(torch.from_numpy(images)).argmax(dim=1).numpy()
    task = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, ("a", "b", "c", "d"))
    spec = InputSpec("image", torch.float32, ("batch", *shape))
    return Candidate(module, (spec,), ("logits",), HeldOut({"image": images}, labels, "made up"), task)


def convolving() -> Candidate:
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    made = classifier(*layers, shape=(1, 8, 8))
    return replace(made, calibration={"image": random(64, 1, 8, 8)})


def perceptron() -> Candidate:
    return classifier(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))


@cache
def attention() -> bytes:
    """Exports what `attending` builds: seconds, and the same bytes each time."""
    return export_onnx(attending())


def written(candidate: Candidate) -> bytes:
    """Writes a sequence of layers as the exporter does, in milliseconds."""
    tensors, nodes, name = [], [], "image"
    layers = list(candidate.module.children())
    for index, layer in enumerate(layers):
        output = "logits" if layer is layers[-1] else f"y{index}"
        inputs = [name, *(f"{index}.{key}" for key in layer.state_dict())]
        tensors += [numpy_helper.from_array(array.numpy(), f"{index}.{k}") for k, array in layer.state_dict().items()]
        kind = OPERATORS[type(layer)]
        nodes.append(helper.make_node(kind, inputs, [output]))
        if kind == "Gemm":
            nodes[-1].attribute.append(helper.make_attribute("transB", 1))
        name = output
    shape = ["batch", *candidate.held_out.inputs["image"].shape[1:]]
    edges = [helper.make_tensor_value_info(*edge) for edge in (("image", 1, shape), ("logits", 1, ["batch", 4]))]
    graph = helper.make_graph(nodes, "g", edges[:1], edges[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def operators(content: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_model_from_string(content).graph.node}


def answers(content: bytes, inputs: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, inputs)
    return np.asarray(output)


def test_attention_is_one_node_a_layer_and_the_answers_stay() -> None:
    candidate = attending()
    plain = attention()
    fused = fuse_layers(plain)

    assert (attention_count(plain), attention_count(fused)) == (0, 2)
    assert "Softmax" not in operators(fused)
    inputs = {name: array.copy() for name, array in candidate.held_out.inputs.items()}
    inputs["mask"][2] = 0  # of nothing but padding: the plain file has a guard against its NaN
    for size in (12, 1):
        some = {name: array[:size] for name, array in inputs.items()}
        np.testing.assert_allclose(answers(fused, some), answers(plain, some), rtol=0, atol=2e-6)
    shorter = {name: array[:, :5] for name, array in inputs.items()}
    np.testing.assert_allclose(answers(fused, shorter), answers(plain, shorter), rtol=0, atol=2e-6)


def test_a_fused_file_that_answers_otherwise_would_be_refused() -> None:
    other = replace(attending(), module=SelfAttention())
    (refused,) = make_variants(other, attention(), ["fused"])
    assert "expected |onnxruntime - float64| <= " in refused.refusal
    assert refused.content == b""


def test_a_graph_without_attention_has_no_fused_variant() -> None:
    (variant,) = make_variants(perceptron(), written(perceptron()), ["fused"])
    assert variant.refusal.startswith("no attention was fused")


def test_products_are_quantized_row_by_row_and_answer_nearly_as_before() -> None:
    candidate = replace(perceptron(), tolerance=Tolerance(variant_loss=1.0))
    (variant,) = make_variants(candidate, written(perceptron()), ["int8"])
    assert {"QuantizeLinear", "MatMulIntegerToFloat"} <= operators(variant.content)
    assert not {"Gemm", "MatMul", "DynamicQuantizeLinear"} & operators(variant.content)
    assert [ratio.batch_size for ratio in variant.speed] == [1, 8, 32]
    inputs = dict(candidate.held_out.inputs)
    plain = answers(written(perceptron()), inputs)
    assert np.abs(answers(variant.content, inputs) - plain).max() < 0.1 * np.abs(plain).max()


def test_convolutions_are_quantized_statically_and_answer_nearly_as_before() -> None:
    candidate = replace(convolving(), tolerance=Tolerance(variant_loss=1.0))
    (variant,) = make_variants(candidate, written(convolving()), ["int8"])
    assert variant.refusal == ""
    assert variant.verification is not None
    assert "accuracy" in (variant.verification.providers[0].metrics or {})
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(variant.content)
    assert not any(name.startswith("Dynamic") for name in operators(variant.content))
    inputs = dict(candidate.held_out.inputs)
    plain = answers(written(convolving()), inputs)
    assert np.abs(answers(variant.content, inputs) - plain).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("node", "is_refused"),
    [
        (helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "batch"), True),
        (helper.make_node("QuantizeLinear", ["x", "computed", "zero"], ["q"], "batch"), True),
        (helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "constant"), False),
    ],
)
def test_a_scale_of_the_batch_in_a_file_with_constant_scales_is_named(node: onnx.NodeProto, is_refused: bool) -> None:
    constants = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("scale", "zero")]
    graph = helper.make_graph([node], "g", [], [], constants)
    if is_refused:
        with pytest.raises(VariantError, match="int8: expected constant scales, got computed ones at 'batch'"):
            check_constant_scales(graph)
    else:
        check_constant_scales(graph)


def test_nan_stays_nan_in_a_file_with_constant_scales_and_in_its_own_row_alone() -> None:
    candidate = replace(convolving(), tolerance=Tolerance(variant_loss=1.0))
    (variant,) = make_variants(candidate, written(convolving()), ["int8"])
    images = candidate.held_out.inputs["image"][:3].copy()
    expected = answers(variant.content, {"image": images})
    images[1, 0, 4, 4] = np.nan
    found = answers(variant.content, {"image": images})
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


def test_int8_of_a_transformer_quantizes_once_for_query_key_and_value_around_fused_attention() -> None:
    candidate, plain = attending(), attention()
    (variant,) = make_variants(candidate, plain, ["int8"])
    assert variant.refusal == ""
    nodes = [node.op_type for node in onnx.load_model_from_string(variant.content).graph.node]
    counts = {name: nodes.count(name) for name in ("MultiHeadAttention", "MatMulIntegerToFloat", "QuantizeLinear")}
    # Two layers of query, key, value and output: the first three read one tensor, the last what attention gives.
    assert counts == {"MultiHeadAttention": 2, "MatMulIntegerToFloat": 8, "QuantizeLinear": 4}
    assert variant.to_facts()["fused_attention_count"] == 2
    inputs = {name: array.copy() for name, array in candidate.held_out.inputs.items()}
    inputs["mask"][2] = 0
    for rows, length in ((12, 9), (1, 9), (5, 4)):
        some = {name: array[:rows, :length] for name, array in inputs.items()}
        largest = np.abs(answers(plain, some)).max()
        assert np.abs(answers(variant.content, some) - answers(plain, some)).max() < 0.02 * largest


def test_a_variant_that_loses_more_than_the_recipe_allows_is_refused_with_the_points() -> None:
    candidate = convolving()
    # Labels that only the fp32 file gets right are lost by any other rounding: here all of them are wrong for int8.
    strict = replace(candidate, tolerance=Tolerance(variant_loss=-1.0))
    (refused,) = make_variants(strict, written(convolving()), ["int8"])
    assert refused.refusal.startswith("accuracy: expected at most -100 points lost, got ")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({}, "expected a calibration set for a model that convolves, got none"),
        ({"image": random(5, 1, 8, 8)}, "calibration set: expected at least 32 examples, the same number for every"),
        ({"image": random(64, 1, 7, 8)}, "calibration input 'image': expected float32 ('batch', 1, 8, 8), got float32"),
        ({"image": random(64, 1, 8, 8).astype(np.float64)}, "got float64 (64, 1, 8, 8)"),
        ({"picture": random(64, 1, 8, 8)}, "calibration set: expected inputs ['image'], got ['picture']"),
    ],
)
def test_a_calibration_set_that_does_not_do_is_named(calibration: dict[str, Array], message: str) -> None:
    candidate = replace(convolving(), calibration=calibration)
    (variant,) = make_variants(candidate, written(convolving()), ["int8"])
    assert message in variant.refusal


def test_a_calibration_set_is_cut_to_what_is_needed() -> None:
    candidate = convolving()
    cut = checked_calibration({"image": random(600, 1, 8, 8)}, candidate.inputs)
    assert len(cut["image"]) == 512


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_half_precision_keeps_fp32_at_the_edges(variant: str) -> None:
    model = onnx.load_model_from_string(halve(written(perceptron()), variant))
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.data_type for tensor in model.graph.initializer if tensor.data_type != TensorProto.INT64} == {
        TensorProto.FLOAT16 if variant == "fp16" else TensorProto.BFLOAT16
    }
    edges = [*model.graph.input, *model.graph.output]
    assert [value.type.tensor_type.elem_type for value in edges] == [TensorProto.FLOAT, TensorProto.FLOAT]


def test_fp16_answers_as_fp32_to_its_precision_and_refuses_weights_beyond_its_range() -> None:
    candidate, plain = perceptron(), written(perceptron())
    inputs = dict(candidate.held_out.inputs)
    np.testing.assert_allclose(answers(halve(plain, "fp16"), inputs), answers(plain, inputs), rtol=0, atol=5e-3)

    weight = numpy_helper.from_array(np.array([7e4], np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    with pytest.raises(VariantError, match=r"fp16: weight 'w': expected at most 65504, got 70000: use bf16"):
        halve(helper.make_model(graph).SerializeToString(), "fp16")


def test_a_version_holds_its_variants_with_their_records_under_its_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = ExportedGraph(attention(), Assumptions((), {}, ()))
    monkeypatch.setattr("fitserve_exporters.publishing.publish.export_graph", lambda _: graph)
    candidate = replace(attending(), tolerance=Tolerance(variant_loss=1.0))
    published = publish_candidate(candidate, tmp_path, "m", ["fused", "fp16"])

    assert (published.folder / "model.fused.onnx").is_file()
    verify_checksums(published.folder)
    manifest = read_manifest(published.folder)
    assert manifest is not None
    facts = manifest.files["model.fused.onnx"]
    assert (facts["variant"], facts["device"], facts["fused_attention_count"]) == ("fused", "cpu", 2)
    assert facts["verification"]["tolerance"]["per_output"]["y"] > 0
    assert [ratio["batch_size"] for ratio in facts["speed"]] == [1, 8, 12]
    neighbours = facts["verification"]["neighbours"]
    assert neighbours["rows_are_independent"]
    assert neighbours["is_complete"]
    assert (neighbours["held_out_count"], neighbours["batch_sizes"]) == (4, [3, 2, 8])
    assert "model.fused.onnx" not in manifest.files_for_callers
    assert published.to_json()["variants"]["fused"] == "published"
    # The graph's own constants, as the scale of attention, are none of the module's parameters.
    assert describe(attention())["parameter_count"] > manifest.onnx["parameter_count"] == 8 * (16 * 16 + 16)


def test_the_choice_is_read_or_named() -> None:
    assert read_choice("none") == ()
    assert read_choice("int8, fused,int8") == ("int8", "fused")
    for text in ("int4", "auto,int8", "none,int8", ""):
        with pytest.raises(ExportError, match="--variants: expected auto, none, or some of int8, fused, fp16, bf16"):
            read_choice(text)


def ratios(*lows: float) -> list[SpeedRatio]:
    return [SpeedRatio(1, low + 0.5, low, low + 1) for low in lows]


def test_faster_means_by_the_lower_ends_over_all_sizes() -> None:

    assert is_faster(ratios(0.8, 1.5))
    assert not is_faster(ratios(0.8, 1.2))
    assert not is_faster(ratios(0.99))


def test_a_least_ratio_is_held_at_every_size() -> None:
    assert is_faster(ratios(0.8, 1.9), least=1.3)
    assert not is_faster(ratios(0.79, 1.9), least=1.3)


@pytest.mark.parametrize(("choice", "is_published"), [("int8", True), ("auto", False)])
def test_int8_that_gains_little_is_published_where_it_is_named_and_not_by_auto(
    monkeypatch: pytest.MonkeyPatch, choice: str, is_published: bool
) -> None:
    monkeypatch.setattr("fitserve_exporters.variants.speed_ratios", lambda *_: ratios(0.7))
    candidate = replace(perceptron(), tolerance=Tolerance(variant_loss=1.0))
    int8 = make_variants(candidate, written(perceptron()), [choice])[0]
    assert (int8.refusal == "") == is_published
    assert is_published or int8.refusal == "less than 1.3× fp32 here: 1.20× fp32 at batch 1"
