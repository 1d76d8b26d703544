"""Our definitions of others' protocols, held field by field against the packages that own them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
)
from grpc_health.v1 import health_pb2 as peer_health
from grpc_reflection.v1alpha import reflection_pb2 as peer_reflection
from tritonclient.grpc import model_config_pb2 as peer_config
from tritonclient.grpc import service_pb2 as peer_service

from fitserve_oip import inference_pb2, pool


def ours(name: str) -> FileDescriptorProto:
    return next(file for file in pool.descriptor_set().file if file.name == f"fitserve_oip/{name}")


def as_proto(file: object) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)  # type: ignore[attr-defined]
    return proto


def field_facts(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[object, ...]:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return (field.number, field.type, field.label, field.type_name, oneof)


def method_facts(method: MethodDescriptorProto) -> tuple[object, ...]:
    return (method.input_type, method.output_type, method.client_streaming, method.server_streaming)


def enum_facts(owner: DescriptorProto | FileDescriptorProto) -> dict[str, dict[str, int]]:
    return {enum.name: {value.name: value.number for value in enum.value} for enum in owner.enum_type}


def differences(mine: DescriptorProto, theirs: DescriptorProto, where: str) -> list[str]:
    their_fields = {field.name: field_facts(theirs, field) for field in theirs.field}
    found = [
        f"{where}.{field.name}: ours {field_facts(mine, field)}, theirs {their_fields.get(field.name)}"
        for field in mine.field
        if their_fields.get(field.name) != field_facts(mine, field)
    ]
    their_enums = enum_facts(theirs)
    found += [f"{where}.{name}: enum" for name, facts in enum_facts(mine).items() if their_enums.get(name) != facts]
    nested = {message.name: message for message in theirs.nested_type}
    for message in mine.nested_type:
        found += differences(message, nested[message.name], f"{where}.{message.name}")
    return found


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("inference.proto", peer_service),
        ("model_config.proto", peer_config),
        ("health.proto", peer_health),
        ("reflection_v1alpha.proto", peer_reflection),
    ],
)
def test_every_field_is_the_owners(name: str, peer: object) -> None:
    theirs = as_proto(peer.DESCRIPTOR)  # type: ignore[attr-defined]
    their_messages = {message.name: message for message in theirs.message_type}
    # List came to the health protocol later than grpcio-health-checking's lowest supported version.
    added = {"HealthListRequest", "HealthListResponse"}
    mine = [
        message for message in ours(name).message_type if message.name not in added or message.name in their_messages
    ]
    assert mine
    assert ours(name).package == theirs.package
    assert [line for m in mine for line in differences(m, their_messages[m.name], m.name)] == []
    their_enums = enum_facts(theirs)
    assert {enum: their_enums.get(enum) for enum in enum_facts(ours(name))} == enum_facts(ours(name))


def test_every_field_that_a_served_method_uses_is_ours_too() -> None:
    theirs = {message.name: message for message in as_proto(peer_service.DESCRIPTOR).message_type}
    for message in ours("inference.proto").message_type:
        assert [field.name for field in message.field] == [field.name for field in theirs[message.name].field]


@pytest.mark.parametrize(
    ("name", "peer"),
    [("inference.proto", peer_service), ("health.proto", peer_health), ("reflection_v1alpha.proto", peer_reflection)],
)
def test_every_method_is_the_owners(name: str, peer: object) -> None:
    (theirs,) = as_proto(peer.DESCRIPTOR).service  # type: ignore[attr-defined]
    (mine,) = ours(name).service
    their_methods = {method.name: method_facts(method) for method in theirs.method}
    added = {"List"} - their_methods.keys()
    assert mine.name == theirs.name
    for method in mine.method:
        if method.name not in added:
            assert their_methods[method.name] == method_facts(method)


def test_reflection_v1_is_v1alpha_in_another_package() -> None:
    renamed = FileDescriptorProto()
    renamed.CopyFrom(ours("reflection.proto"))
    text = str(renamed).replace("grpc.reflection.v1", "grpc.reflection.v1alpha").replace("n.proto", "n_v1alpha.proto")
    assert text == str(ours("reflection_v1alpha.proto"))


def test_a_config_of_ours_reads_back_through_the_peers_message() -> None:
    config = inference_pb2.ModelConfigResponse()
    config.config.name = "lenet"
    config.config.dynamic_batching.max_queue_delay_microseconds = 7
    peer = peer_service.ModelConfigResponse.FromString(config.SerializeToString())
    assert peer.config.name == "lenet"
    assert peer.config.dynamic_batching.max_queue_delay_microseconds == 7
    assert peer.SerializeToString() == config.SerializeToString()


ORDERS = [("fitserve_oip.inference_pb2", "tritonclient.grpc"), ("tritonclient.grpc", "fitserve_oip.inference_pb2")]


@pytest.mark.parametrize("order", ORDERS)
def test_both_stub_sets_load_in_one_process_in_either_order(order: tuple[str, str]) -> None:
    program = f"import {order[0]}, {order[1]}"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_private_pool_is_not_the_default_one() -> None:
    assert pool.private_pool() is not descriptor_pool.Default()  # type: ignore[no-untyped-call]
    assert inference_pb2.ModelInferRequest.DESCRIPTOR.file.pool is pool.private_pool()
    assert inference_pb2.ModelInferRequest is not peer_service.ModelInferRequest
