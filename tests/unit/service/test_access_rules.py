"""Who may call each method: the descriptors say it for all that is served, and what they do not say is denied."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.wire.conforming import channel, details_of, failure, running

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve_oip import health_pb2
from fitserve_oip.pool import private_pool
from fitserve_service.access.access_file import AccessWatcher
from fitserve_service.access.audit import AuditTrail
from fitserve_service.access.guard import Guard
from fitserve_service.access.rules import GRANTED, Rule, Scope, rules_of
from fitserve_service.calls import Call, MethodTable, StreamCall, StreamHandler, UnaryCall
from fitserve_service.status import answering

OTHERS = (
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


def all_methods() -> list[str]:
    services = [
        service for module in (control_pb2, inference_pb2) for service in module.DESCRIPTOR.services_by_name.values()
    ]
    services += [private_pool().FindServiceByName(name) for name in OTHERS]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def test_every_method_of_every_descriptor_has_a_rule() -> None:
    rules = rules_of(all_methods())
    assert set(rules) == set(all_methods())
    assert len(rules) > 30
    for rule in rules.values():
        assert rule.models(b"") == [""] * len(rule.model_fields)
        if rule.listed_field:
            assert rule.only(b"", frozenset()) == b""
        # A credential for some models alone can be held against it, or it is said to be about none.
        assert bool(rule.model_fields or rule.listed_field) != rule.is_about_no_model


def test_what_changes_a_model_asks_for_control_and_what_answers_does_not() -> None:
    scopes = {name.rpartition("/")[2]: rule.scope for name, rule in rules_of(all_methods()).items()}
    changing = {name for name in scopes if name.startswith(("Load", "Unload", "Set", "Delete", "RepositoryModel"))}
    assert {name for name, scope in scopes.items() if scope is Scope.CONTROL} == changing
    assert {name for name, scope in scopes.items() if scope is Scope.INFER} == {
        "Predict", "ModelInfer", "ModelStreamInfer",
    }  # fmt: skip
    assert {name for name, scope in scopes.items() if scope is Scope.OPEN} == {
        "Check", "Watch", "ServerLive", "ServerReady",
    }  # fmt: skip


@given(names=st.lists(st.text(max_size=5), max_size=8), models=st.frozensets(st.text(max_size=5), max_size=5))
def test_a_list_is_left_with_the_models_alone(names: list[str], models: frozenset[str]) -> None:
    rules = rules_of(all_methods())
    listed = control_pb2.ListModelsResponse(models=[control_pb2.Model(name=name) for name in names])
    only = rules["/fitserve.control.v1.ModelControlService/ListModels"].only(listed.SerializeToString(), models)
    left = control_pb2.ListModelsResponse.FromString(only).models
    assert [model.name for model in left] == [name for name in names if name in models]
    healths = health_pb2.HealthListResponse(statuses={name: health_pb2.HealthCheckResponse(status=1) for name in names})
    only = rules["/grpc.health.v1.Health/List"].only(healths.SerializeToString(), models)
    statuses = health_pb2.HealthListResponse.FromString(only).statuses
    assert set(statuses) == {name for name in names if name in models or not name}


def guard_of(world: Callable[[], Any], access: Path | None) -> tuple[Guard, AuditTrail]:
    class Posting:
        def post(self, callback: Callable[[], None]) -> None:
            world().transport.post(callback)

        def call_soon(self, callback: Callable[[], None]) -> None:
            world().transport.call_soon(callback)

        def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
            world().transport.call_later(delay_s, callback)

    def ending(call: Call) -> AbstractContextManager[Any]:
        return answering(call)  # type: ignore[return-value]

    trail = AuditTrail(None)
    watcher = None if access is None else AccessWatcher(access, lambda _: None)
    return Guard(watcher, trail, Posting(), ending), trail


def answer(call: UnaryCall, message: bytes) -> None:
    call.reply(message)


class Answering:
    def __init__(self, call: StreamCall) -> None:
        self.call = call

    def on_message(self, message: bytes) -> None:
        self.call.send(message)

    def on_half_close(self) -> None:
        self.call.finish()


def new_stream(call: StreamCall) -> StreamHandler:
    return Answering(call)


def test_a_new_method_is_closed_until_somebody_has_decided_who_may_call_it(tmp_path: Path) -> None:
    scopes = ", ".join(f'"{scope}"' for scope in GRANTED)
    access = tmp_path / "access.toml"
    access.write_text(f"[anonymous]\nscopes = [{scopes}]\n")
    access.chmod(0o600)
    predict = "/fitserve.inference.v1.InferenceService/Predict"
    unary = {
        "/fitserve.new.v1.New/Method": answer,
        "/fitserve.inference.v1.InferenceService/New": answer,
        predict: answer,
    }
    worlds: list[Any] = []
    guard, trail = guard_of(lambda: worlds[0], access)
    table = guard.wrap(MethodTable(unary, {"/fitserve.new.v1.New/Stream": new_stream}))
    with running("fast", table) as world, channel(world.port) as opened:
        worlds.append(world)
        for name in unary:
            if name == predict:
                assert opened.unary_unary(name)(b"", timeout=20) == b""
            else:
                error = failure(opened, b"", name)
                assert details_of(error)[1].reason == "NOT_PERMITTED"
        with pytest.raises(Exception, match="PERMISSION_DENIED"):
            list(opened.stream_stream("/fitserve.new.v1.New/Stream")(iter([b"a"]), timeout=20))
    trail.close()


def test_without_an_access_file_only_control_actions_are_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    load = "/fitserve.control.v1.ModelControlService/LoadModel"
    unary = {
        "/fitserve.inference.v1.InferenceService/Predict": answer,
        "/fitserve.new.v1.New/Method": answer,
        load: answer,
    }
    worlds: list[Any] = []
    guard, trail = guard_of(lambda: worlds[0], None)
    table = guard.wrap(MethodTable(unary, {"/fitserve.new.v1.New/Stream": new_stream}))
    assert {name for name in unary if table.unary[name] is not answer} == {load}
    assert table.stream["/fitserve.new.v1.New/Stream"] is new_stream
    request = control_pb2.LoadModelRequest(name="m").SerializeToString()
    with caplog.at_level(logging.INFO), running("fast", table) as world, channel(world.port) as opened:
        worlds.append(world)
        assert opened.unary_unary(load)(request, timeout=20) == request
    trail.close()
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("audit: ")]
    assert len(told) == 2
    assert '"caller": "peer:127.0.0.1"' in told[0]
    assert '"target": {"name": "m"}' in told[0]
    assert '"result": "OK"' in told[1]


def test_a_rule_reads_what_the_method_reads() -> None:
    """Twice a field, or a message in two parts: the parser's last word counts, for the guard as for the method."""
    rule = rules_of(["/fitserve.inference.v1.InferenceService/Predict"])[
        "/fitserve.inference.v1.InferenceService/Predict"
    ]
    one, other = (inference_pb2.PredictRequest() for _ in range(2))
    one.model.name, other.model.name = "open", "secret"
    torn = one.SerializeToString() + other.SerializeToString()
    assert rule.models(torn) == [inference_pb2.PredictRequest.FromString(torn).model.name] == ["secret"]
    assert isinstance(rule, Rule)
