"""The control service, health and reflection over the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2 as peer_health
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests import builders
from tests.wire.serving import WAIT_S, connected, refused, serving

from fitserve.control.v1 import control_pb2 as pb
from fitserve.control.v1 import control_pb2_grpc
from fitserve.inference.v1 import inference_pb2 as native
from fitserve.types.v1 import tensor_pb2
from fitserve_oip import health_pb2, inference_pb2, reflection_pb2
from fitserve_service.known_model import ModelSnapshot
from fitserve_service.server import Server

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


@contextmanager
def control_of(server: Server) -> Iterator[Any]:
    with connected(server) as channel:
        yield control_pb2_grpc.ModelControlServiceStub(channel)  # type: ignore[no-untyped-call]


def version_request(name: str, **selector: Any) -> pb.GetModelVersionRequest:
    return pb.GetModelVersionRequest(model=tensor_pb2.ModelSpec(name=name, **selector))


def test_models_are_listed_with_their_versions_states_and_labels(tmp_path: Path) -> None:
    for _ in range(2):
        rows = {"x": np.ones((3, 2), np.float32)}
        builders.certified_version(tmp_path, "b", builders.scaled(), rows, task=builders.classes_task())
    (tmp_path / "b" / "labels.json").write_text('{"canary": 2}')
    builders.bare_version(tmp_path, "a", 4, b"broken")
    with serving(tmp_path) as server, control_of(server) as stub:
        a, b = stub.ListModels(pb.ListModelsRequest(), timeout=WAIT_S).models
        assert stub.GetModel(pb.GetModelRequest(name="b"), timeout=WAIT_S).model == b
        assert refused(stub.GetModel, pb.GetModelRequest(name="c"))[:2] == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert (a.name, a.versions[0].version, a.versions[0].state) == ("a", 4, pb.STATE_FAILED)
    assert "model.onnx" in a.versions[0].reason
    first, second = b.versions
    assert (first.version, first.state, first.execution_provider) == (1, pb.STATE_UNLOADED, "")
    assert (second.state, list(second.labels), second.is_verified) == (pb.STATE_READY, ["canary"], True)
    assert 0 < second.replay_ms < second.load_ms
    assert (second.execution_provider, second.task) == ("CPUExecutionProvider", "classification")
    assert second.max_batch_size == 256
    assert second.load_ms > 0


def test_a_version_shows_its_signature_manifest_and_configuration(tmp_path: Path) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task())
    builders.bare_version(tmp_path, "o", 1, builders.default_input())
    builders.bare_version(tmp_path, "any", 1, builders.identity(shape=None))
    builders.bare_version(tmp_path, "broken", 1, b"broken")
    with serving(tmp_path) as server, control_of(server) as stub:
        answer = stub.GetModelVersion(version_request("m"), timeout=WAIT_S)
        other = stub.GetModelVersion(version_request("o", version=1), timeout=WAIT_S)
        free = stub.GetModelVersion(version_request("any"), timeout=WAIT_S)
        failed = stub.GetModelVersion(version_request("broken", version=1), timeout=WAIT_S)
        cases = [
            (version_request("m", version=9), ("NOT_FOUND", "VERSION_NOT_FOUND")),
            (version_request("m", label="x"), ("NOT_FOUND", "LABEL_NOT_FOUND")),
            (version_request("none"), ("NOT_FOUND", "MODEL_NOT_FOUND")),
            (version_request("m", version=0), ("INVALID_ARGUMENT", "INVALID_VERSION")),
            (version_request("broken"), ("FAILED_PRECONDITION", "MODEL_FAILED")),
        ]
        for request, expected in cases:
            assert refused(stub.GetModelVersion, request)[:2] == expected
    assert (answer.model_name, answer.version.version) == ("m", 1)
    assert answer.inputs[0] == pb.TensorSpec(name="x", datatype="FP32", shape=[-1, 2], axis_names=["B", ""])
    assert json.loads(answer.manifest_json)["model"] == "m"
    assert list(answer.class_names) == ["class 0", "class 1"]
    assert "max_batch_size = 256" in answer.effective_config_toml
    assert [(spec.name, spec.is_optional) for spec in other.inputs] == [("x", False), ("offset", True)]
    assert other.manifest_json == ""
    assert not other.version.is_verified
    assert (free.inputs[0].has_dynamic_rank, list(free.inputs[0].shape)) == (True, [])
    assert (failed.version.state, len(failed.inputs)) == (pb.STATE_FAILED, 0)


def test_models_are_unloaded_until_they_are_loaded(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.scaled())
    builders.bare_version(tmp_path, "broken", 1, b"broken")
    with serving(tmp_path) as server, control_of(server) as stub:
        stub.UnloadModel(pb.UnloadModelRequest(name="m"), timeout=WAIT_S)
        stub.UnloadModel(pb.UnloadModelRequest(name="m"), timeout=WAIT_S)
        stub.UnloadModel(pb.UnloadModelRequest(name="none"), timeout=WAIT_S)
        (unloaded,) = stub.GetModel(pb.GetModelRequest(name="m"), timeout=WAIT_S).model.versions
        assert unloaded.state == pb.STATE_UNLOADED
        (loaded,) = stub.LoadModel(pb.LoadModelRequest(name="m"), timeout=WAIT_S).model.versions
        assert loaded.state == pb.STATE_READY
        assert refused(stub.LoadModel, pb.LoadModelRequest(name="none"))[:2] == ("NOT_FOUND", "MODEL_NOT_FOUND")
        found = refused(stub.LoadModel, pb.LoadModelRequest(name="broken"))
        assert found[:2] == ("FAILED_PRECONDITION", "LOAD_FAILED")
        builders.bare_version(tmp_path, "broken", 2, builders.scaled())
        (_, second) = stub.LoadModel(pb.LoadModelRequest(name="broken"), timeout=WAIT_S).model.versions
        assert second.state == pb.STATE_READY


def test_health_is_checked_and_listed(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.scaled())
    builders.bare_version(tmp_path, "broken", 1, b"broken")
    with serving(tmp_path) as server, connected(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name, status in (("", SERVING), ("m", SERVING), ("broken", NOT_SERVING)):
            assert stub.Check(peer_health.HealthCheckRequest(service=name), timeout=WAIT_S).status == status
        assert refused(stub.Check, peer_health.HealthCheckRequest(service="none"))[0] == "NOT_FOUND"
        listed = health_pb2.HealthListResponse.FromString(channel.unary_unary("/grpc.health.v1.Health/List")(b""))
    statuses = {name: answer.status for name, answer in listed.statuses.items()}
    assert statuses == {"": SERVING, "m": SERVING, "broken": NOT_SERVING}


def test_a_watch_sees_a_model_come_and_go_and_the_server_drain(tmp_path: Path) -> None:
    with serving(tmp_path) as server, connected(server) as channel, control_of(server) as control:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        request = health_pb2.HealthCheckRequest(service="m").SerializeToString()
        model, whole = watch(request, timeout=WAIT_S), watch(b"", timeout=WAIT_S)

        def until(answers: Any, status: int) -> None:
            while health_pb2.HealthCheckResponse.FromString(next(answers)).status != status:
                pass

        until(model, UNKNOWN)
        until(whole, SERVING)
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        until(model, SERVING)
        control.UnloadModel(pb.UnloadModelRequest(name="m"), timeout=WAIT_S)
        until(model, NOT_SERVING)
        control.LoadModel(pb.LoadModelRequest(name="m"), timeout=WAIT_S)
        until(model, SERVING)
        server.stop()
        until(model, NOT_SERVING)
        until(whole, NOT_SERVING)
        assert list(model) == []
        assert list(whole) == []


def test_reflection_v1alpha_gives_every_service_to_a_foreign_client(tmp_path: Path) -> None:
    with serving(tmp_path) as server, connected(server) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert services == {
            "fitserve.inference.v1.InferenceService",
            "fitserve.control.v1.ModelControlService",
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        pool = DescriptorPool(database)
        for service in services:
            assert pool.FindServiceByName(service).methods  # type: ignore[no-untyped-call]


def test_reflection_v1_answers_in_order_and_says_what_is_not_there(tmp_path: Path) -> None:
    kinds = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="inference.ModelConfig", extension_number=1000)
    requests = [
        kinds(list_services="*"),
        kinds(file_containing_symbol="inference.ModelInferRequest"),
        kinds(file_by_filename="fitserve/types/v1/tensor.proto"),
        kinds(file_by_filename="no/such.proto"),
        kinds(file_containing_extension=extension),
        kinds(all_extension_numbers_of_type="inference.ModelConfig"),
        kinds(),
    ]
    with serving(tmp_path) as server, connected(server) as channel:
        call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        sent = iter([request.SerializeToString() for request in requests])
        answers = [reflection_pb2.ServerReflectionResponse.FromString(m) for m in call(sent, timeout=WAIT_S)]
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"\xff"]), timeout=WAIT_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [answer.original_request for answer in answers] == requests
    assert [answer.error_response.error_code for answer in answers] == [0, 0, 0, 5, 5, 0, 3]
    files = [
        FileDescriptorProto.FromString(file).name for file in answers[1].file_descriptor_response.file_descriptor_proto
    ]
    assert files == ["fitserve_oip/inference.proto", "fitserve_oip/model_config.proto"]
    assert answers[5].all_extension_numbers_response.base_type_name == "inference.ModelConfig"


def test_every_method_of_every_described_service_is_served_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path) as server, connected(server) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        for service in database.get_services():
            for method in pool.FindServiceByName(service).methods:  # type: ignore[no-untyped-call]
                answers = channel.stream_stream(f"/{service}/{method.name}")(iter([b"\xff\xff\xff"]), timeout=WAIT_S)
                if method.name == "ModelStreamInfer":
                    # Refuses the bytes within its stream, which goes on.
                    (refusal,) = map(inference_pb2.ModelStreamInferResponse.FromString, answers)
                    assert "expected inference.ModelInferRequest" in refusal.error_message
                    continue
                with pytest.raises(grpc.RpcError) as caught:
                    next(answers)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name


def test_no_question_and_no_refused_request_keeps_a_version_loaded(tmp_path: Path) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task())
    oip = "/inference.GRPCInferenceService"
    questions = {
        f"{oip}/ModelMetadata": inference_pb2.ModelMetadataRequest(name="m"),
        f"{oip}/ModelConfig": inference_pb2.ModelConfigRequest(name="m"),
        f"{oip}/ModelStatistics": inference_pb2.ModelStatisticsRequest(name="m", version="1"),
        "/fitserve.control.v1.ModelControlService/GetModelVersion": version_request("m"),
    }
    spec = tensor_pb2.ModelSpec(name="m")
    refusals = {
        f"{oip}/ModelInfer": inference_pb2.ModelInferRequest(model_name="m"),
        "/fitserve.inference.v1.InferenceService/Predict": native.PredictRequest(model=spec, outputs=["none"]),
        "/fitserve.inference.v1.InferenceService/Evaluate": native.EvaluateRequest(
            model=spec, labels=tensor_pb2.Tensor(datatype="INT64", shape=[0])
        ),
    }
    with serving(tmp_path) as server, connected(server) as channel, control_of(server) as control:
        for method, request in questions.items():
            assert channel.unary_unary(method)(request.SerializeToString(), timeout=WAIT_S)
        for method, request in refusals.items():
            assert refused(channel.unary_unary(method), request.SerializeToString())[0] == "INVALID_ARGUMENT"
        control.UnloadModel(pb.UnloadModelRequest(name="m"), timeout=5)
        assert [version.state.value for version in server.registry.model("m").versions] == ["UNLOADED"]


def test_a_version_that_comes_between_look_and_lease_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.scaled())
    with serving(tmp_path, poll_interval_s=3600) as server, control_of(server) as stub:
        honest = server.registry.model

        def then_another(name: str) -> ModelSnapshot:
            snapshot = honest(name)
            monkeypatch.undo()
            (first,) = snapshot.versions
            assert first.served is not None
            server.registry.set_ready(replace(first.served, version=2))
            return snapshot

        monkeypatch.setattr(server.registry, "model", then_another)
        assert stub.GetModelVersion(version_request("m"), timeout=WAIT_S).version.version == 2
