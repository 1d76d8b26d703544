"""Requests that ONNX Runtime takes are answered, whatever converters wrote into the file or the message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.wire.serving import WAIT_S, connected, refused, served_stub, serving, tensor

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve_contract.tensor_bytes import Array
from fitserve_oip import inference_pb2 as oip


@contextmanager
def infers(root: Path, content: bytes) -> Iterator[Any]:
    """Serves a model as `m`, and gives its ModelInfer call of plain messages."""
    builders.bare_version(root, "m", 1, content)
    with serving(root) as server, connected(server) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )


def raw(inputs: dict[str, Array]) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="m")
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def pooled(axes: tuple[str, str]) -> bytes:
    """x FP32 (N, 3, H, W) -> y (N, 3, 1, 1), the axes named as given."""
    return builders.model(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        [builders.value("x", ("N", 3, *axes))],
        [builders.value("y", ("N", 3, 1, 1))],
    )


@pytest.mark.parametrize("axes", [("?", "?"), ("None", "None"), ("-1", "-1"), ("N", "N"), ("S", "S")])
def test_axes_of_one_name_may_differ(tmp_path: Path, axes: tuple[str, str]) -> None:
    with infers(tmp_path, pooled(axes)) as infer:
        for _ in range(4):
            answer = infer(raw({"x": ones(1, 3, 48, 192)}), timeout=WAIT_S)
            assert list(answer.outputs[0].shape) == [1, 3, 1, 1]


def test_first_axes_may_differ_where_rows_are_not_joined(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [f"in{k}"], [f"out{k}"]) for k in range(3)]
    inputs, outputs = (
        [builders.value(f"{what}{k}", (f"var_{2 * k + add}",)) for k in range(3)]
        for add, what in enumerate(("in", "out"))
    )
    with infers(tmp_path, builders.model(nodes, inputs, outputs)) as infer:
        answer = infer(raw({"in0": ones(1), "in1": ones(3), "in2": ones(0)}), timeout=WAIT_S)
        assert [list(output.shape) for output in answer.outputs] == [[1], [3], [0]]


def test_what_the_runtime_refuses_is_the_callers_error_and_names_the_tensor(tmp_path: Path) -> None:
    values = [builders.value("a", ("N", "S")), builders.value("b", ("N", "S"))], [builders.value("c", ("N", "S"))]
    with infers(tmp_path, builders.model([helper.make_node("Add", ["a", "b"], ["c"])], *values)) as infer:
        code, reason, text = refused(infer, raw({"a": ones(1, 2), "b": ones(1, 3)}))
        assert (code, reason) == ("INVALID_ARGUMENT", "OPERATOR_FAILED")
        assert "input 'b': expected 2 for axis S, as in input 'a', got shape (1, 3): operator Add" in text
        broadcast = infer(raw({"a": ones(1, 2), "b": ones(1, 1)}), timeout=WAIT_S)
        assert list(broadcast.outputs[0].shape) == [1, 2]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scalar_may_come_with_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with infers(tmp_path, builders.identity(shape=())) as infer:
        answer = infer(raw({"x": ones(*shape)}), timeout=WAIT_S)
        assert answer.raw_output_contents[0] == ones(1).tobytes()


def test_contents_without_an_element_may_stand_beside_raw_ones(tmp_path: Path) -> None:
    with infers(tmp_path, builders.scaled()) as infer:
        request = raw({"x": ones(1, 2)})
        request.inputs[0].contents.SetInParent()
        for _ in range(4):
            assert infer(request, timeout=WAIT_S).raw_output_contents[0] == (2 * ones(1, 2)).tobytes()
        request.inputs[0].contents.fp32_contents.append(1.0)
        assert "input 'x': expected no contents beside raw_input_contents" in refused(infer, request)[2]


def counted() -> bytes:
    """x BOOL (B, 4) -> y INT64 (B, 4): 1 where true, 0 where false, by kernels that look at bytes differently."""
    return builders.model(
        [
            helper.make_node("Not", ["x"], ["negated"]),
            helper.make_node("Not", ["negated"], ["same"]),
            helper.make_node("Equal", ["same", "x"], ["is_equal"]),
            helper.make_node("And", ["is_equal", "x"], ["is_true"]),
            helper.make_node("Cast", ["is_true"], ["y"], to=TensorProto.INT64),
        ],
        [builders.value("x", ("B", 4), TensorProto.BOOL)],
        [builders.value("y", ("B", 4), TensorProto.INT64)],
    )


BOOLS = [bytes([0, 1, 2, 255]), bytes([128, 0, 3, 1]), bytes([1, 1, 0, 0])]


def test_bool_bytes_mean_the_same_on_every_api_alone_and_joined(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, counted())
    expected = [[int(byte != 0) for byte in content] for content in BOOLS]
    with serving(tmp_path) as server, served_stub(server) as stub, connected(server) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        for _ in range(4):
            natives, infers = [], []
            for content in BOOLS:
                predict = pb.PredictRequest(inputs=[tensor("x", np.zeros((1, 4), np.bool_))])
                predict.model.name, predict.inputs[0].content = "m", content
                natives.append(stub.Predict.future(predict, timeout=WAIT_S))
                request = oip.ModelInferRequest(model_name="m", raw_input_contents=[content])
                request.inputs.add(name="x", datatype="BOOL", shape=[1, 4])
                infers.append(infer.future(request, timeout=WAIT_S))
            found = [np.frombuffer(call.result().outputs[0].content, np.int64).tolist() for call in natives]
            assert found == expected
            found = [np.frombuffer(call.result().raw_output_contents[0], np.int64).tolist() for call in infers]
            assert found == expected


def test_an_output_that_is_no_tensor_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    builders.bare_version(tmp_path, "iris", 1, builders.zipmap_like())
    with serving(tmp_path) as server:
        served = server.registry.lease("iris").served
        assert [spec.name for spec in served.signature.outputs] == ["label"]
    [line] = [record.getMessage() for record in caplog.records if "not served" in record.getMessage()]
    assert line.startswith("iris version 1: output 'probabilities' is not served: ")
    assert line.endswith("or take the input of the ZipMap node as the output")
