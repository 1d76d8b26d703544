"""Where nodes run: counted by the runtime itself, and held against what was asked for."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from fitserve_contract.onnx_file import read_facts
from fitserve_service.placement import Placement, placement_of, placement_problem, placement_text
from fitserve_service.session import CPU_PROVIDER, CUDA_PROVIDER, Session, SessionOptions, cuda_problem

FLATTENED = 6


def flattening() -> bytes:
    """A model that computes the shape it reshapes to, as exports with a free batch axis do."""
    weight = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    first = onnx.numpy_helper.from_array(np.array([0], np.int64), "first")
    rest = onnx.numpy_helper.from_array(np.array([-1], np.int64), "rest")
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["target"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Erf", ["product"], ["bent"]),
        helper.make_node("Reshape", ["bent", "target"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 4])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 3])]
    graph = helper.make_graph(nodes, "flattening", inputs, outputs, [weight, first, rest])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def recorded(model: bytes) -> list[object]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(model, options, providers=[CPU_PROVIDER])
    return list(session.get_provider_graph_assignment_info())


def test_what_the_runtime_recorded_is_counted_by_provider() -> None:
    placement = placement_of(recorded(flattening()), CPU_PROVIDER)

    assert placement == Placement({CPU_PROVIDER: FLATTENED}, {})
    assert placement_problem(placement, CPU_PROVIDER, 0) == ""
    assert placement_text(placement) == "nodes: CPUExecutionProvider 6"


def test_nodes_left_to_the_cpu_are_a_problem_but_for_arithmetic_of_shapes() -> None:
    placement = placement_of(recorded(flattening()), CUDA_PROVIDER)

    assert placement.left_over == {"Erf": 1, "MatMul": 1}
    assert placement_problem(placement, CUDA_PROVIDER, 2) == ""
    assert placement_problem(placement, CUDA_PROVIDER, 1) == (
        "expected at most 1 nodes that CUDAExecutionProvider leaves to the CPU, got 2: Erf, MatMul; "
        'allow them in model.toml with max_cpu_nodes = 2, or serve the model with device = "cpu"'
    )
    assert placement_text(placement) == "nodes: CPUExecutionProvider 6 (Erf, MatMul left over)"


def test_many_operators_are_told_by_their_counts_and_not_all_by_name() -> None:
    placement = Placement({CPU_PROVIDER: 60}, {f"Op{index}": index + 1 for index in range(9)})

    text = placement_problem(placement, CUDA_PROVIDER, 0)
    assert text.startswith("expected no node that CUDAExecutionProvider leaves to the CPU, got 45: Op0, Op1 ×2, ")
    assert "Op7 ×8, …;" in text


def test_a_custom_operator_named_like_one_of_shapes_counts() -> None:
    class Node:
        op_type, domain = "Gather", "com.example"

    class Part:
        ep_name = CPU_PROVIDER

        def get_nodes(self) -> list[Node]:
            return [Node()]

    assert placement_of([Part()], CUDA_PROVIDER).left_over == {"Gather": 1}


def test_on_the_cpu_nothing_is_recorded() -> None:
    model = builders.identity()
    assert Session(model, read_facts(model), SessionOptions("cpu")).placement == Placement()


@pytest.mark.needs_gpu
def test_every_node_runs_on_cuda_or_the_model_is_refused_by_its_operators() -> None:
    assert cuda_problem() is None
    model = flattening()
    session = Session(model, read_facts(model), SessionOptions("cuda"))

    assert session.provider == CUDA_PROVIDER
    assert session.placement.left_over == {}
    assert session.placement.node_counts[CUDA_PROVIDER] >= 2
