"""Predict and Evaluate over the wire, and every row of the error table that the two and ModelInfer can meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests import builders
from tests.wire.serving import WAIT_S, connected, refused, served_stub, serving, tensor

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_oip import inference_pb2 as oip
from fitserve_service.server import Server

INFER = "/inference.GRPCInferenceService/ModelInfer"


def spec(name: str, **selector: Any) -> tensor_pb2.ModelSpec:
    return tensor_pb2.ModelSpec(name=name, **selector)


def predict_request(name: str, *tensors: tensor_pb2.Tensor, **changes: Any) -> pb.PredictRequest:
    return pb.PredictRequest(model=spec(name, **changes), inputs=tensors)


def decoded(message: tensor_pb2.Tensor) -> Any:
    return tensor_bytes.decode(message.name, message.datatype, tuple(message.shape), message.content)


ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_predict_answers_by_default_by_version_and_by_label(tmp_path: Path) -> None:
    for factor in (2.0, 3.0):
        builders.publish_version(tmp_path, "times", builders.scaled(factor))
    (tmp_path / "times" / "labels.json").write_text('{"stable": 1, "canary": 2}')
    with serving(tmp_path) as server, served_stub(server) as stub:
        for selector, factor in (({}, 2), ({"version": 2}, 3), ({"label": "canary"}, 3), ({"label": "stable"}, 2)):
            answer = stub.Predict(predict_request("times", tensor("x", ROWS), **selector), timeout=WAIT_S)
            assert (answer.model_name, answer.model_version) == ("times", factor - 1)
            assert (decoded(answer.outputs[0]) == ROWS * factor).all()


def test_predict_brings_the_outputs_asked_for_in_that_order(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "pair", 1, builders.two_in_two_out())
    with serving(tmp_path) as server, served_stub(server) as stub:
        request = predict_request("pair", tensor("b", ROWS), tensor("a", ROWS))
        assert [t.name for t in stub.Predict(request, timeout=WAIT_S).outputs] == ["total", "difference"]
        request.outputs.extend(["difference", "total"])
        assert [t.name for t in stub.Predict(request, timeout=WAIT_S).outputs] == ["difference", "total"]


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "default", 1, builders.default_input())
    builders.bare_version(tmp_path, "optional", 1, builders.optional_tensor())
    with serving(tmp_path) as server, served_stub(server) as stub:
        answer = stub.Predict(predict_request("default", tensor("x", ROWS)), timeout=WAIT_S)
        assert (decoded(answer.outputs[0]) == ROWS + 10).all()
        offset = tensor("offset", np.array([1], np.float32))
        answer = stub.Predict(predict_request("default", tensor("x", ROWS), offset), timeout=WAIT_S)
        assert (decoded(answer.outputs[0]) == ROWS + 1).all()
        answer = stub.Predict(predict_request("optional", tensor("x", ROWS)), timeout=WAIT_S)
        assert not decoded(answer.outputs[1])


@pytest.mark.parametrize("name", ["mean_over_batch", "cumulative_sum", "softmax_over_batch", "zipmap_like"])
def test_models_that_mix_rows_or_give_maps_are_served_without_joining(tmp_path: Path, name: str) -> None:
    builders.bare_version(tmp_path, name, 1, getattr(builders, name)())
    rows = np.arange(6, dtype=np.float32).reshape(2, 3) if name == "zipmap_like" else ROWS
    with serving(tmp_path) as server, served_stub(server) as stub, ThreadPoolExecutor(8) as pool:
        request = predict_request(name, tensor("x", rows))
        alone = stub.Predict(request, timeout=WAIT_S)
        together = list(pool.map(lambda _: stub.Predict(request, timeout=WAIT_S), range(40)))
    assert all(answer == alone for answer in together)


ERRORS: list[tuple[str, Callable[[], pb.PredictRequest], tuple[str, str, str]]] = [
    ("unknown model", lambda: predict_request("none", tensor("x", ROWS)), ("NOT_FOUND", "MODEL_NOT_FOUND", "'none'")),
    ("no model", lambda: predict_request("", tensor("x", ROWS)), ("NOT_FOUND", "MODEL_NOT_FOUND", "model ''")),
    (
        "unknown version",
        lambda: predict_request("m", tensor("x", ROWS), version=9),
        ("NOT_FOUND", "VERSION_NOT_FOUND", "no version 9"),
    ),
    (
        "version zero",
        lambda: predict_request("m", tensor("x", ROWS), version=0),
        ("INVALID_ARGUMENT", "INVALID_VERSION", "at least 1, got 0"),
    ),
    (
        "unknown label",
        lambda: predict_request("m", tensor("x", ROWS), label="gold"),
        ("NOT_FOUND", "LABEL_NOT_FOUND", "'gold'"),
    ),
    (
        "failed version",
        lambda: predict_request("broken", tensor("x", ROWS)),
        ("FAILED_PRECONDITION", "MODEL_FAILED", "model.onnx"),
    ),
    (
        "wrong datatype",
        lambda: predict_request("m", tensor("x", ROWS.astype(np.float64))),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected datatype FP32, got FP64"),
    ),
    (
        "unknown datatype",
        lambda: predict_request("m", tensor_pb2.Tensor(name="x", datatype="FLOAT", shape=[1, 2], content=b"")),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "got 'FLOAT'"),
    ),
    (
        "bytes that do not fit",
        lambda: predict_request("m", tensor_pb2.Tensor(name="x", datatype="FP32", shape=[1, 2], content=b"1234567")),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected 8 bytes for FP32 (1, 2), got 7"),
    ),
    (
        "wrong rank",
        lambda: predict_request("m", tensor("x", ROWS.reshape(-1))),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected shape (B, 2), got (6,)"),
    ),
    (
        "wrong dimension",
        lambda: predict_request("m", tensor("x", ROWS.reshape(2, 3))),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected shape (B, 2), got (2, 3)"),
    ),
    (
        "negative dimension",
        lambda: predict_request("m", tensor_pb2.Tensor(name="x", datatype="FP32", shape=[-1, 2], content=b"")),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected axis sizes of at least 0"),
    ),
    (
        "product that overflows",
        lambda: predict_request("m", tensor_pb2.Tensor(name="x", datatype="FP32", shape=[2**32, 2**32], content=b"")),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected at most"),
    ),
    (
        "batch over the limit",
        lambda: predict_request("limited", tensor("x", np.zeros((9, 2), np.float32))),
        (
            "INVALID_ARGUMENT",
            "BATCH_TOO_LARGE",
            "at most 8 examples in a request (max_batch_size in model.toml), got 9",
        ),
    ),
    (
        "missing input",
        lambda: predict_request("m"),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected FP32 (B, 2), got no such tensor"),
    ),
    (
        "unknown input",
        lambda: predict_request("m", tensor("x", ROWS), tensor("z", ROWS)),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'z': expected one of x"),
    ),
    (
        "duplicate input",
        lambda: predict_request("m", tensor("x", ROWS), tensor("x", ROWS)),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected it once, got it twice"),
    ),
    (
        "unknown output",
        lambda: pb.PredictRequest(model=spec("m"), inputs=[tensor("x", ROWS)], outputs=["w"]),
        ("INVALID_ARGUMENT", "INVALID_OUTPUT", "output 'w': expected one of y"),
    ),
    (
        "zero rows of a model without a batch axis",
        lambda: predict_request("fixed", tensor("x", np.zeros((0, 3), np.float32))),
        ("INVALID_ARGUMENT", "INVALID_INPUT", "input 'x': expected shape (2, 3), got (0, 3)"),
    ),
    (
        "values that an operator refuses",
        lambda: predict_request("gather", tensor("index", np.array([99], np.int64))),
        ("INVALID_ARGUMENT", "OPERATOR_FAILED", "Gather"),
    ),
]


@contextmanager
def error_world(root: Path) -> Iterator[Server]:
    builders.bare_version(root, "m", 1, builders.scaled())
    limited = builders.bare_version(root, "limited", 1, builders.scaled())
    (limited.folder.parent / "model.toml").write_text("max_batch_size = 8\n")
    builders.bare_version(root, "fixed", 1, builders.fixed_shape())
    builders.bare_version(root, "gather", 1, builders.gather())
    builders.bare_version(root, "broken", 1, b"\x00not a model")
    with serving(root) as server:
        yield server


def as_infer(request: pb.PredictRequest) -> oip.ModelInferRequest | None:
    """The same request in the Open Inference Protocol; None where it cannot say it."""
    if request.model.HasField("label"):
        return None
    version = str(request.model.version) if request.model.HasField("version") else ""
    infer = oip.ModelInferRequest(model_name=request.model.name, model_version=version)
    for given_tensor in request.inputs:
        infer.inputs.add(name=given_tensor.name, datatype=given_tensor.datatype, shape=given_tensor.shape)
        infer.raw_input_contents.append(given_tensor.content)
    for name in request.outputs:
        infer.outputs.add(name=name)
    return infer


def test_every_row_of_the_error_table_in_both_apis(tmp_path: Path) -> None:
    with error_world(tmp_path) as server, served_stub(server) as stub, connected(server) as channel:
        for case, make, (code, reason, text) in ERRORS:
            found = refused(stub.Predict, make())
            assert found[:2] == (code, reason), (case, found)
            assert text in found[2], case
            infer = as_infer(make())
            if infer is not None:
                found = refused(channel.unary_unary(INFER), infer.SerializeToString())
                assert found[:2] == (code, reason), (case, found)
        answer = stub.Predict(predict_request("m", tensor("x", ROWS)), timeout=WAIT_S)
        assert (decoded(answer.outputs[0]) == 2 * ROWS).all()


@pytest.mark.parametrize("method", ["Predict", "Evaluate"])
def test_a_malformed_message_is_the_callers_fault(tmp_path: Path, method: str) -> None:
    with serving(tmp_path) as server, connected(server) as channel:
        call = channel.unary_unary(f"/fitserve.inference.v1.InferenceService/{method}")
        code, reason, text = refused(call, b"\xff\xff\xff")
    assert (code, reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert f"expected fitserve.inference.v1.{method}Request" in text


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.scaled())
    unknown = b"\xc2\x3e\x03abc"  # field 1000, three bytes
    request = predict_request("m", tensor("x", ROWS)).SerializeToString() + unknown
    with serving(tmp_path) as server, connected(server) as channel:
        answer = channel.unary_unary("/fitserve.inference.v1.InferenceService/Predict")(request, timeout=WAIT_S)
    assert (decoded(pb.PredictResponse.FromString(answer).outputs[0]) == 2 * ROWS).all()


def test_one_bad_row_costs_its_own_caller_alone(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "gather", 1, builders.gather())

    def ask(index: int) -> str:
        request = predict_request("gather", tensor("index", np.array([index], np.int64)))
        try:
            return str(decoded(stub.Predict(request, timeout=WAIT_S).outputs[0])[0, 0])
        except grpc.RpcError as error:
            return error.code().name

    with serving(tmp_path) as server, served_stub(server) as stub, ThreadPoolExecutor(24) as pool:
        asked = [99 if position % 7 == 3 else position % 5 for position in range(300)]
        got = list(pool.map(ask, asked))
    assert got == ["INVALID_ARGUMENT" if index == 99 else str(index * 2.0) for index in asked]


def test_a_full_queue_refuses_and_the_rest_is_answered(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "slow", 1, builders.slow(width=256))
    (tmp_path / "slow" / "model.toml").write_text("max_queued_examples = 8\nmax_batch_size = 8\n")
    rows = np.zeros((8, 256), np.float32)

    def ask(_: int) -> str:
        try:
            stub.Predict(predict_request("slow", tensor("x", rows)), timeout=WAIT_S)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    with serving(tmp_path) as server, served_stub(server) as stub, ThreadPoolExecutor(32) as pool:
        codes = set(pool.map(ask, range(128)))
        assert codes == {"OK", "RESOURCE_EXHAUSTED"}


def test_a_request_may_say_how_long_it_queues(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "slow", 1, builders.slow(rounds=400, width=256))
    request = oip.ModelInferRequest(model_name="slow")
    request.inputs.add(name="x", datatype="FP32", shape=[8, 256])
    request.raw_input_contents.append(bytes(8 * 256 * 4))
    short = oip.ModelInferRequest()
    short.CopyFrom(request)
    short.parameters["timeout"].int64_param = 1
    with serving(tmp_path) as server, connected(server) as channel:
        call = channel.unary_unary(INFER)
        # Runs of one version do not overlap: what comes behind the first waits for it.
        running = [call.future(request.SerializeToString(), timeout=WAIT_S) for _ in range(4)]
        code, reason, _ = refused(call, short.SerializeToString())
        assert (code, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_PASSED")
        assert all(future.result() for future in running)


@pytest.mark.parametrize("datatype", sorted(set(NUMPY_DTYPES) - {"FP16", "BF16"}))
def test_typed_contents_are_read_for_every_datatype_that_has_them(tmp_path: Path, datatype: str) -> None:
    from fitserve_service.codec_oip import CONTENTS_FIELDS

    values: list[Any] = [b"a", b""] if datatype == "BYTES" else [0, 1]
    builders.bare_version(tmp_path, "same", 1, builders.identity(datatype))
    request = oip.ModelInferRequest(model_name="same")
    contents = oip.InferTensorContents(**{CONTENTS_FIELDS[datatype]: values})
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2], contents=contents)
    dtype = object if datatype == "BYTES" else NUMPY_DTYPES[datatype]
    with serving(tmp_path) as server, connected(server) as channel:
        answer = oip.ModelInferResponse.FromString(channel.unary_unary(INFER)(request.SerializeToString()))
        request.inputs[0].shape[1] = 3
        code, reason, text = refused(channel.unary_unary(INFER), request.SerializeToString())
    assert answer.raw_output_contents[0] == tensor_bytes.encode(np.array([values], dtype), datatype)
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")
    assert "input 'x': expected 3 elements" in text


def test_contents_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "small", 1, builders.identity("INT8"))

    def request(**tensor_facts: Any) -> oip.ModelInferRequest:
        made = oip.ModelInferRequest(model_name="small")
        made.inputs.add(**({"name": "x", "datatype": "INT8", "shape": [1, 2]} | tensor_facts))
        return made

    contents = oip.InferTensorContents
    both = request(contents=contents(int_contents=[1, 2]))
    both.raw_input_contents.append(b"12")
    extra = request()
    extra.raw_input_contents.extend([b"12", b"12"])
    cases = {
        "expected no contents beside raw_input_contents": both,
        "expected one entry per input, 1, got 2": extra,
        "expected -128..127 for INT8, got 128": request(contents=contents(int_contents=[1, 128])),
        "expected its elements in int_contents, got fp32_contents": request(contents=contents(fp32_contents=[1, 2])),
        "expected 2 elements for (1, 2) in int_contents, got 0": request(),
        "expected raw_input_contents for datatype FP16": request(datatype="FP16"),
        "expected a datatype of": request(datatype="INT9"),
    }
    with serving(tmp_path) as server, connected(server) as channel:
        for text, made in cases.items():
            found = refused(channel.unary_unary(INFER), made.SerializeToString())
            assert found[:2] == ("INVALID_ARGUMENT", "INVALID_INPUT"), (text, found)
            assert text in found[2]


@pytest.mark.parametrize("version", ["one", "-1", "0", "1.0", " 1", "١", "9" * 40])
def test_a_version_that_is_no_number_is_refused(tmp_path: Path, version: str) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.scaled())
    with serving(tmp_path) as server, connected(server) as channel:
        for method, request in (
            ("ModelInfer", oip.ModelInferRequest(model_name="m", model_version=version)),
            ("ModelMetadata", oip.ModelMetadataRequest(name="m", version=version)),
            ("ModelConfig", oip.ModelConfigRequest(name="m", version=version)),
            ("ModelReady", oip.ModelReadyRequest(name="m", version=version)),
        ):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            assert refused(call, request.SerializeToString())[:2] == ("INVALID_ARGUMENT", "INVALID_VERSION")


def test_a_cancelled_caller_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "slow", 1, builders.slow(rounds=1000, width=256))
    rows = np.ones((4, 256), np.float32)
    request = predict_request("slow", tensor("x", rows))
    with serving(tmp_path) as server, served_stub(server) as stub:
        futures = [stub.Predict.future(request, timeout=WAIT_S) for _ in range(12)]
        for future in futures[3::3]:
            future.cancel()
        kept = [futures[0], *(future for index, future in enumerate(futures) if index % 3)]
        assert all((decoded(future.result().outputs[0]) == 1).all() for future in kept)
        assert all(future.code() is grpc.StatusCode.CANCELLED for future in futures[3::3])


def test_a_version_published_under_load_answers_and_no_request_fails(tmp_path: Path) -> None:
    builders.publish_version(tmp_path, "live", builders.scaled(1.0))
    is_over = threading.Event()
    failures: list[str] = []
    seen: set[int] = set()

    def client() -> None:
        with served_stub(server) as stub:
            request = predict_request("live", tensor("x", ROWS))
            while not is_over.is_set():
                try:
                    answer = stub.Predict(request, timeout=WAIT_S)
                except grpc.RpcError as error:
                    failures.append(str(error))
                    continue
                seen.add(answer.model_version)
                # Each answer comes from exactly one version.
                if not (decoded(answer.outputs[0]) == ROWS * answer.model_version).all():
                    failures.append(f"version {answer.model_version} answered for another")
                if answer.model_version == 3:
                    is_over.set()

    with serving(tmp_path) as server:
        clients = [threading.Thread(target=client) for _ in range(32)]
        for thread in clients:
            thread.start()
        for factor in (2.0, 3.0):
            builders.publish_version(tmp_path, "live", builders.scaled(factor))
            while int(factor) not in seen and not failures and not is_over.is_set():
                is_over.wait(0.01)
        is_over.wait(WAIT_S)
        for thread in clients:
            thread.join()
    assert failures == []
    assert {1, 3} <= seen
