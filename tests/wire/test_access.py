"""Who may do what, over the wire: every method with every credential, quotas, the audit log; on both transports."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from tests import builders, pki
from tests.wire.conforming import TRANSPORTS
from tests.wire.serving import WAIT_S, refused, serving, tensor

from fitserve.control.v1 import control_pb2 as control
from fitserve.inference.v1 import inference_pb2 as native
from fitserve.types.v1.tensor_pb2 import ModelSpec
from fitserve_oip import health_pb2, inference_pb2, reflection_pb2
from fitserve_oip.pool import private_pool
from fitserve_service.access.access_file import digest_of
from fitserve_service.pages_http import Request
from fitserve_service.server import Server
from fitserve_service.status import DETAILS_KEY

pytestmark = [
    pytest.mark.parametrize("transport", sorted(TRANSPORTS)),
    pytest.mark.needs_program("openssl"),
]

OWN, CONTROL, OIP = (
    "fitserve.inference.v1.InferenceService",
    "fitserve.control.v1.ModelControlService",
    "inference.GRPCInferenceService",
)
HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"


def spec(name: str) -> ModelSpec:
    return ModelSpec(name=name)


NAMING: dict[str, tuple[str, Callable[[str], Any]]] = {
    f"{OWN}/Predict": ("infer", lambda name: native.PredictRequest(model=spec(name))),
    f"{OWN}/Evaluate": ("evaluate", lambda name: native.EvaluateRequest(model=spec(name))),
    f"{OWN}/CompareVersions": (
        "evaluate",
        lambda name: native.CompareVersionsRequest(first=spec("open"), second=spec(name)),
    ),
    f"{CONTROL}/GetModel": ("describe", lambda name: control.GetModelRequest(name=name)),
    f"{CONTROL}/GetModelVersion": ("describe", lambda name: control.GetModelVersionRequest(model=spec(name))),
    f"{CONTROL}/GetModelVersionFile": ("describe", lambda name: control.GetModelVersionFileRequest(model=spec(name))),
    f"{CONTROL}/LoadModel": ("control", lambda name: control.LoadModelRequest(name=name)),
    f"{CONTROL}/UnloadModel": ("control", lambda name: control.UnloadModelRequest(name=name)),
    f"{CONTROL}/SetLabel": ("control", lambda name: control.SetLabelRequest(model=name)),
    f"{CONTROL}/DeleteLabel": ("control", lambda name: control.DeleteLabelRequest(model=name)),
    f"{CONTROL}/ListLabelMoves": ("describe", lambda name: control.ListLabelMovesRequest(model=name)),
    f"{CONTROL}/SetTraffic": ("control", lambda name: control.SetTrafficRequest(model=name)),
    f"{CONTROL}/GetTraffic": ("describe", lambda name: control.GetTrafficRequest(model=name)),
    f"{CONTROL}/GetShadowReport": ("describe", lambda name: control.GetShadowReportRequest(model=name)),
    f"{OIP}/ModelReady": ("describe", lambda name: inference_pb2.ModelReadyRequest(name=name)),
    f"{OIP}/ModelMetadata": ("describe", lambda name: inference_pb2.ModelMetadataRequest(name=name)),
    f"{OIP}/ModelConfig": ("describe", lambda name: inference_pb2.ModelConfigRequest(name=name)),
    f"{OIP}/ModelStatistics": ("describe", lambda name: inference_pb2.ModelStatisticsRequest(name=name)),
    f"{OIP}/ModelInfer": ("infer", lambda name: inference_pb2.ModelInferRequest(model_name=name)),
    f"{OIP}/ModelStreamInfer": ("infer", lambda name: inference_pb2.ModelInferRequest(model_name=name)),
    f"{OIP}/RepositoryModelLoad": ("control", lambda name: inference_pb2.RepositoryModelLoadRequest(model_name=name)),
    f"{OIP}/RepositoryModelUnload": (
        "control",
        lambda name: inference_pb2.RepositoryModelUnloadRequest(model_name=name),
    ),
    f"{HEALTH}/Check": ("describe", lambda name: health_pb2.HealthCheckRequest(service=name)),
    f"{HEALTH}/Watch": ("describe", lambda name: health_pb2.HealthCheckRequest(service=name)),
}
"""Methods that name a model: the scope that they ask for, written down once more, and a request."""

GENERAL: dict[str, tuple[str, Any]] = {
    f"{CONTROL}/ListModels": ("describe", control.ListModelsRequest()),
    f"{OIP}/ServerLive": ("open", inference_pb2.ServerLiveRequest()),
    f"{OIP}/ServerReady": ("open", inference_pb2.ServerReadyRequest()),
    f"{OIP}/ServerMetadata": ("describe", inference_pb2.ServerMetadataRequest()),
    f"{OIP}/RepositoryIndex": ("describe", inference_pb2.RepositoryIndexRequest()),
    f"{HEALTH}/List": ("describe", health_pb2.HealthListRequest()),
    f"{REFLECTION}/ServerReflectionInfo": ("describe", reflection_pb2.ServerReflectionRequest(list_services="")),
    f"{REFLECTION.replace('v1', 'v1alpha')}/ServerReflectionInfo": (
        "describe",
        reflection_pb2.ServerReflectionRequest(list_services=""),
    ),
}
"""Methods that name none."""

STREAMS = ("ModelStreamInfer", "Watch", "ServerReflectionInfo")

TOKENS = {
    "infer": 'scopes = ["infer"]',
    "evaluate": 'scopes = ["evaluate"]',
    "control": 'scopes = ["control"]',
    "all": 'scopes = ["infer", "evaluate", "control"]',
    "one": 'scopes = ["infer", "evaluate", "control"]\nmodels = ["open"]',
    "expired": 'scopes = ["infer", "evaluate", "control"]\nexpires = 2020-01-01T00:00:00Z',
}


def access_text(**more: str) -> str:
    """An access file with a token of each kind; the token is its name twice."""
    entries = [
        f'[[token]]\nname = "{name}"\nsha256 = "{digest_of(name * 2).hex()}"\n{rest}\n'
        for name, rest in (TOKENS | more).items()
    ]
    return "\n".join(entries)


def write_private(path: Path, text: str) -> Path:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.chmod(0o600)
    os.replace(aside, path)
    return path


class World:
    """A server with TLS and tokens that serves `open` and `secret`, and channels to it."""

    def __init__(self, server: Server, ca: pki.Pair, folder: Path) -> None:
        self.server, self.ca, self.folder = server, ca, folder
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel: Any = grpc.secure_channel(f"localhost:{server.port}", pki.client_credentials(ca), options=options)

    @contextmanager
    def shown(self, credentials: grpc.ChannelCredentials | None) -> Iterator[None]:
        """Calls on a channel of its own with other credentials, or in cleartext, while the block runs."""
        before, options = self.channel, [("grpc.use_local_subchannel_pool", 1)]
        target = f"localhost:{self.server.port}"
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options=options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options=options)
        with self.channel:
            yield
        self.channel = before

    def call(self, method: str, request: Any, token: str | None = None) -> Any:
        """Makes a call and gives its answer, of a stream the first."""
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        if method.rpartition("/")[2] in STREAMS:
            answers = self.channel.stream_stream(f"/{method}")(
                iter([request.SerializeToString()]), timeout=WAIT_S, metadata=metadata
            )
            first = next(answers)
            answers.cancel()
            return first
        return self.channel.unary_unary(f"/{method}")(request.SerializeToString(), timeout=WAIT_S, metadata=metadata)

    def code(self, method: str, request: Any, token: str | None = None) -> str:
        """Makes a call and gives the name of its code; refusals of access with their text."""
        try:
            self.call(method, request, token)
        except grpc.RpcError as error:
            failed: Any = error
            return str(failed.code().name)
        return "OK"


@contextmanager
def world(tmp_path: Path, transport: str, text: str, **changes: Any) -> Iterator[World]:
    root = tmp_path / "repository"
    for name in ("open", "secret"):
        builders.publish_version(root, name, builders.scaled())
    files, ca = pki.server_files(tmp_path)
    access = write_private(tmp_path / "access.toml", text)
    settings = {"tls_cert": files.certificate, "tls_key": files.key, "access_file": access, "transport": transport}
    with serving(root, **{**settings, **changes}) as server:
        made = World(server, ca, tmp_path)
        with made.channel:
            yield made


def served_methods(made: World) -> set[str]:
    """Asks reflection for the services, and the descriptors for their methods."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    found = made.call(f"{REFLECTION}/ServerReflectionInfo", request, "allall")
    listed = reflection_pb2.ServerReflectionResponse.FromString(found).list_services_response.service
    own = {**native.DESCRIPTOR.services_by_name, **control.DESCRIPTOR.services_by_name}
    known = {service.full_name: service for service in own.values()}
    services = [known.get(each.name) or private_pool().FindServiceByName(each.name) for each in listed]
    return {f"{service.full_name}/{method.name}" for service in services for method in service.methods}


def predict(name: str = "open", rows: int = 1) -> Any:
    return native.PredictRequest(model=spec(name), inputs=[tensor("x", np.ones((rows, 2), np.float32))])


def test_every_method_asks_every_credential_for_its_scope(transport: str, tmp_path: Path) -> None:
    has = {"infer": {"infer"}, "evaluate": {"evaluate"}, "control": {"control"}}
    has |= {"all": {"infer", "evaluate", "control"}, "one": {"infer", "evaluate", "control"}}
    with world(tmp_path, transport, access_text()) as made:
        methods = {**GENERAL, **{name: (scope, request("none")) for name, (scope, request) in NAMING.items()}}
        assert set(methods) == served_methods(made)
        for method, (scope, request) in methods.items():
            for token in (None, "wrong", "x" * 5000, "expiredexpired", "", "infer"):
                expected = scope == "open"
                code = made.code(method, request, token)
                assert (code != "UNAUTHENTICATED") == expected, (method, token, code)
                assert code != "PERMISSION_DENIED"
            for token, scopes in has.items():
                code = made.code(method, request, token * 2)
                may = scope in ("open", "describe", *scopes) and not (token == "one" and method in NAMING)
                assert code != "UNAUTHENTICATED", (method, token)
                assert (code != "PERMISSION_DENIED") == may, (method, token, code)


def test_a_credential_for_some_models_sees_no_others_and_cannot_tell_whether_they_are(
    transport: str, tmp_path: Path
) -> None:
    with world(tmp_path, transport, access_text()) as made:
        for method, (_, request) in NAMING.items():
            texts = []
            for name in ("secret", "nothing"):
                with pytest.raises(grpc.RpcError) as caught:
                    made.call(method, request(name), "oneone")
                failed: Any = caught.value
                assert failed.code() is grpc.StatusCode.PERMISSION_DENIED, method
                texts.append((failed.details(), dict(failed.trailing_metadata())[DETAILS_KEY]))
            assert texts[0] == texts[1]
            assert "secret" not in str(texts)
        listed = control.ListModelsResponse.FromString(
            made.call(f"{CONTROL}/ListModels", control.ListModelsRequest(), "oneone")
        )
        assert [model.name for model in listed.models] == ["open"]
        index = made.call(f"{OIP}/RepositoryIndex", inference_pb2.RepositoryIndexRequest(), "oneone")
        assert [entry.name for entry in inference_pb2.RepositoryIndexResponse.FromString(index).models] == ["open"]
        found = made.call(f"{OIP}/ModelStatistics", inference_pb2.ModelStatisticsRequest(), "oneone")
        statistics = inference_pb2.ModelStatisticsResponse.FromString(found)
        assert [entry.name for entry in statistics.model_stats] == ["open"]
        healths = made.call(f"{HEALTH}/List", health_pb2.HealthListRequest(), "oneone")
        assert set(health_pb2.HealthListResponse.FromString(healths).statuses) == {"", "open"}
        assert made.code(f"{OWN}/Predict", predict("open"), "oneone") == "OK"


def test_health_of_the_server_is_for_everybody_and_of_models_is_not(transport: str, tmp_path: Path) -> None:
    with world(tmp_path, transport, access_text()) as made:
        for method in ("Check", "Watch"):
            assert made.code(f"{HEALTH}/{method}", health_pb2.HealthCheckRequest()) == "OK"
            for name in ("open", "nothing"):
                request = health_pb2.HealthCheckRequest(service=name)
                assert made.code(f"{HEALTH}/{method}", request) == "UNAUTHENTICATED"
            request = health_pb2.HealthCheckRequest(service="open")
            assert made.code(f"{HEALTH}/{method}", request, "inferinfer") == "OK"


@pytest.mark.parametrize(
    "path",
    [
        "/{}/",
        "//{}",
        "{}",
        "/{}?x",
        "/{}#x",
        "/./{}",
        "/%66itserve.inference.v1.InferenceService/Predict",
        "/FITSERVE.INFERENCE.V1.INFERENCESERVICE/PREDICT",
        "/grpc.health.v1.Health/Check/../../{}",
        "/{}%00",
    ],
)
def test_no_other_spelling_of_a_method_leads_past_the_guard(transport: str, tmp_path: Path, path: str) -> None:
    with world(tmp_path, transport, access_text()) as made:
        with pytest.raises(grpc.RpcError) as caught:
            made.channel.unary_unary(path.format(f"{OWN}/Predict"))(predict().SerializeToString(), timeout=WAIT_S)
        failed: Any = caught.value
        assert failed.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "inferinfer"),),
        (("authorization", "Basic inferinfer"),),
        (("authorization", "Bearer  inferinfer"),),
        (("authorization", "Bearer inferinfer"), ("authorization", "Bearer inferinfer")),
        (("authorization", "Bearer wrong"), ("authorization", "Bearer inferinfer")),
        (("authorization-bin", b"Bearer inferinfer"),),
        (("x-authorization", "Bearer inferinfer"),),
    ],
)
def test_a_token_is_taken_in_one_form_alone(
    transport: str, tmp_path: Path, metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    with world(tmp_path, transport, access_text()) as made:
        method = made.channel.unary_unary(f"/{OWN}/Predict")
        code, reason, _ = refused(method, predict().SerializeToString(), metadata=metadata)
        assert (code, reason) == ("UNAUTHENTICATED", "NOT_AUTHENTICATED")


def test_requests_beyond_the_rate_are_told_when_to_come_again_and_nobody_else_is(
    transport: str, tmp_path: Path
) -> None:
    text = access_text() + "[quotas.infer]\nrequests_per_s = 0.001\nburst = 3\n"
    with world(tmp_path, transport, text) as made:
        codes = [made.code(f"{OWN}/Predict", predict(), "inferinfer") for _ in range(5)]
        assert codes == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 2
        with pytest.raises(grpc.RpcError) as caught:
            made.call(f"{OWN}/Predict", predict(), "inferinfer")
        failed: Any = caught.value
        status = Status.FromString(dict(failed.trailing_metadata())[DETAILS_KEY])
        retry = RetryInfo()
        assert status.details[1].Unpack(retry)
        assert 500 < retry.retry_delay.ToTimedelta().total_seconds() < 1001
        assert made.code(f"{OWN}/Predict", predict(), "wrong") == "UNAUTHENTICATED"
        exposition = made.server.answer_page(Request("/metrics")).content.decode()
        assert 'fitserve_access_refusals_total{method="Predict",reason="QUOTA"} 3.0' in exposition
        assert 'fitserve_access_refusals_total{method="Predict",reason="NOT_AUTHENTICATED"} 1.0' in exposition
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"
        # What describes is not counted, and health answers throughout.
        assert made.code(f"{CONTROL}/ListModels", control.ListModelsRequest(), "inferinfer") == "OK"
        assert made.code(f"{HEALTH}/Check", health_pb2.HealthCheckRequest(), "inferinfer") == "OK"


@pytest.mark.parametrize(
    ("quota", "rows"), [("examples_in_flight = 8", 9), ("bytes_in_flight = 100", 20), ("queue_share = 0.001", 9)]
)
def test_what_is_in_flight_is_bounded_and_given_back(transport: str, tmp_path: Path, quota: str, rows: int) -> None:
    with world(tmp_path, transport, access_text() + f"[quotas.infer]\n{quota}\n") as made:
        method = made.channel.unary_unary(f"/{OWN}/Predict")
        metadata = (("authorization", "Bearer inferinfer"),)
        for _ in range(3):
            too_much = refused(method, predict(rows=rows).SerializeToString(), metadata=metadata)
            assert too_much[:2] == ("RESOURCE_EXHAUSTED", "QUOTA")
            # What was answered, refused or malformed no longer counts.
            assert refused(method, b"\xff", metadata=metadata)[1] == "MALFORMED_MESSAGE"
            assert refused(method, predict("none").SerializeToString(), metadata=metadata)[1] == "MODEL_NOT_FOUND"
            for _ in range(10):
                assert method(predict(rows=4).SerializeToString(), timeout=WAIT_S, metadata=metadata)
        assert made.code(f"{OWN}/Predict", predict(rows=rows), "allall") == "OK"


def test_a_quota_within_a_stream_fails_its_request_and_not_the_stream(transport: str, tmp_path: Path) -> None:
    def request(rows: int) -> bytes:
        message = inference_pb2.ModelInferRequest(model_name="open", id=str(rows))
        message.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
        message.raw_input_contents.append(np.ones((rows, 2), np.float32).tobytes())
        return message.SerializeToString()

    with world(tmp_path, transport, access_text() + "[quotas.infer]\nexamples_in_flight = 8\n") as made:
        answers = made.channel.stream_stream(f"/{OIP}/ModelStreamInfer")(
            iter([request(rows) for rows in (8, 9, 1, 8) * 5]),
            timeout=WAIT_S,
            metadata=(("authorization", "Bearer inferinfer"),),
        )
        found = [inference_pb2.ModelStreamInferResponse.FromString(answer) for answer in answers]
    errors = {answer.infer_response.id: answer.error_message for answer in found}
    assert len(found) == 20
    assert "at most 8 examples in flight" in errors["9"]
    assert found[0].error_message == ""


def test_tokens_come_and_go_without_a_restart(transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), world(tmp_path, transport, access_text()) as made:
        stays = predict()
        access = tmp_path / "access.toml"

        def until(token: str, code: str) -> None:
            give_up_s = time.monotonic() + WAIT_S
            while made.code(f"{OWN}/Predict", stays, token) != code:
                assert time.monotonic() < give_up_s

        # Two tokens of one name are valid at once: the next is brought out before the old one is taken back.
        another = f'[[token]]\nname = "infer"\nsha256 = "{digest_of("next").hex()}"\nscopes = ["infer"]\n'
        write_private(access, access_text() + another)
        until("next", "OK")
        assert made.code(f"{OWN}/Predict", stays, "inferinfer") == "OK"
        write_private(access, access_text().replace(digest_of("inferinfer").hex(), digest_of("next").hex()))
        until("inferinfer", "UNAUTHENTICATED")
        assert made.code(f"{OWN}/Predict", stays, "next") == "OK"
        # A file that cannot be taken changes nothing, and is told once.
        write_private(access, "[[token]]\nname = 1\n")
        give_up_s = time.monotonic() + WAIT_S
        while "the one before goes on" not in caplog.text:
            assert made.code(f"{OWN}/Predict", stays, "next") == "OK"
            assert time.monotonic() < give_up_s
        access.unlink()
        assert made.code(f"{OWN}/Predict", stays, "next") == "OK"
    assert caplog.text.count("access: the file has changed and cannot be used") <= 2


def test_a_certificate_is_a_credential(transport: str, tmp_path: Path) -> None:
    text = '[[certificate]]\nidentity = "reporting.example"\nscopes = ["infer"]\n[quotas."reporting.example"]\n'
    text += "requests_per_s = 0.001\nburst = 2\n"
    ca_path = tmp_path / "ca.pem"
    with world(tmp_path, transport, text, tls_client_ca=ca_path) as made:
        reporting = pki.issue(tmp_path, "reporting", made.ca, names="DNS:other.example,DNS:reporting.example")
        stranger = pki.issue(tmp_path, "stranger", made.ca, names="DNS:stranger.example")
        for own, codes in ((reporting, ["OK", "OK", "RESOURCE_EXHAUSTED"]), (stranger, ["UNAUTHENTICATED"])):
            with made.shown(pki.client_credentials(made.ca, own)):
                assert [made.code(f"{OWN}/Predict", predict()) for _ in codes] == codes
        assert made.code(f"{OWN}/Predict", predict()) == "UNAVAILABLE"


def test_callers_without_a_credential_may_have_quotas_on_this_machine(transport: str, tmp_path: Path) -> None:
    text = '[anonymous]\nscopes = ["infer"]\n[quotas.default]\nrequests_per_s = 0.001\nburst = 2\n'
    cleartext = {"tls_cert": None, "tls_key": None}
    with world(tmp_path, transport, text, **cleartext) as made, made.shown(None):
        codes = [made.code(f"{OWN}/Predict", predict()) for _ in range(3)]
        assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED"]
        assert made.code(f"{CONTROL}/UnloadModel", control.UnloadModelRequest(name="open")) == "PERMISSION_DENIED"


def test_control_actions_are_on_record_refused_ones_too_and_no_token_is(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "audit.log"
    with caplog.at_level(logging.DEBUG), world(tmp_path, transport, access_text(), audit_log=log) as made:
        move = control.SetLabelRequest(model="open", label="stable", version=1, why="better\nnow")
        assert made.code(f"{CONTROL}/SetLabel", move, "allall") == "OK"
        first = log.read_text()
        assert json.loads(first.splitlines()[1])["result"] == "OK"
        # Rotated: the next line goes into a new file of the name.
        log.rename(tmp_path / "audit.log.1")
        load = inference_pb2.RepositoryModelLoadRequest(model_name="nothing")
        assert made.code(f"{OIP}/RepositoryModelLoad", load, "controlcontrol") == "NOT_FOUND"
        assert made.code(f"{CONTROL}/UnloadModel", control.UnloadModelRequest(name="secret"), "oneone") != "OK"
        assert made.code(f"{CONTROL}/UnloadModel", control.UnloadModelRequest(name="open"), "wrongtoken") != "OK"
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"
    records = [json.loads(line) for line in (first + log.read_text()).splitlines()]
    told = [(r["event"], r["caller"], r["action"].rpartition("/")[2], r.get("result")) for r in records]
    assert told == [
        ("asked", "token:all", "SetLabel", None),
        ("done", "token:all", "SetLabel", "OK"),
        ("asked", "token:control", "RepositoryModelLoad", None),
        ("done", "token:control", "RepositoryModelLoad", "MODEL_NOT_FOUND"),
        ("refused", "token:one", "UnloadModel", "NOT_PERMITTED"),
        ("refused", "", "UnloadModel", "NOT_AUTHENTICATED"),
    ]
    assert records[0]["id"] == records[1]["id"] != records[2]["id"]
    assert records[0]["target"] | {"who": ""} == {
        "model": "open", "label": "stable", "version": "1", "why": "better\nnow", "who": "",
    }  # fmt: skip
    assert all(record["peer"].startswith("ipv") for record in records)
    assert log.stat().st_mode & 0o777 == 0o600
    everything = first + log.read_text() + caplog.text
    for token in ("allall", "controlcontrol", "oneone", "wrongtoken"):
        assert token not in everything


def test_an_action_that_cannot_be_put_on_record_is_not_carried_out(transport: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with world(tmp_path, transport, access_text(), audit_log=folder / "audit.log") as made:
        (folder / "audit.log").unlink()
        folder.rmdir()
        request = control.UnloadModelRequest(name="open")
        method = made.channel.unary_unary(f"/{CONTROL}/UnloadModel")
        metadata = (("authorization", "Bearer allall"),)
        found = refused(method, request.SerializeToString(), metadata=metadata)
        assert found[:2] == ("FAILED_PRECONDITION", "AUDIT_FAILED")
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "OK"
        folder.mkdir()
        assert made.code(f"{CONTROL}/UnloadModel", request, "allall") == "OK"
        assert made.code(f"{OWN}/Predict", predict(), "allall") == "UNAVAILABLE"


def test_a_stream_is_asked_for_its_token_when_it_opens_and_with_each_request(transport: str, tmp_path: Path) -> None:
    hold = threading.Event()

    def requests(*messages: bytes) -> Iterator[bytes]:
        yield from messages
        hold.wait(WAIT_S)
        yield inference_pb2.ModelInferRequest(model_name="open").SerializeToString()

    with world(tmp_path, transport, access_text()) as made:
        stream = made.channel.stream_stream(f"/{OIP}/ModelStreamInfer")
        for token, code in (("wrong", "UNAUTHENTICATED"), ("evaluateevaluate", "PERMISSION_DENIED")):
            with pytest.raises(grpc.RpcError) as caught:
                next(stream(requests(), timeout=WAIT_S, metadata=(("authorization", f"Bearer {token}"),)))
            assert str(caught.value.code().name) == code
        first = inference_pb2.ModelInferRequest(model_name="open").SerializeToString()
        answers = stream(requests(first), timeout=WAIT_S, metadata=(("authorization", "Bearer inferinfer"),))
        assert next(answers)
        # Taken back while the stream is open: its next request ends it.
        write_private(tmp_path / "access.toml", access_text().replace(digest_of("inferinfer").hex(), "0" * 64))
        give_up_s = time.monotonic() + WAIT_S
        while made.code(f"{OWN}/Predict", predict(), "inferinfer") == "OK":
            assert time.monotonic() < give_up_s
        hold.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
