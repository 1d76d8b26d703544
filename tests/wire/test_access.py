"""Who may do what, over the wire: every method with every credential; on both transports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests import pki
from tests.wire.access_world import (
    CONTROL,
    GENERAL,
    HEALTH,
    NAMING,
    OIP,
    OWN,
    access_text,
    predict,
    served_methods,
    world,
    write_private,
)
from tests.wire.conforming import TRANSPORTS
from tests.wire.serving import WAIT_S, refused

from fitserve.control.v1 import control_pb2 as control
from fitserve_oip import health_pb2, inference_pb2
from fitserve_service.access.access_file import digest_of
from fitserve_service.status import DETAILS_KEY

pytestmark = [
    pytest.mark.parametrize("transport", sorted(TRANSPORTS)),
    pytest.mark.needs_program("openssl"),
]


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
