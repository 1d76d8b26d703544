"""The worst messages against a server: each is answered as the table says, on one connection, and the server lives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fitserve_benchmarks.stall_messages import STALL_MESSAGES, StallMessage
from fitserve_benchmarks.stalls import answer_code, put_stall_models
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings

LIVE = "/inference.GRPCInferenceService/ServerLive"
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@pytest.fixture(scope="module", params=["fast", "stock"])
def channel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root: Path = tmp_path_factory.mktemp("repository")
    put_stall_models(root)
    settings = ServerSettings(
        root, port=0, metrics_port=None, device="cpu", canary="off", transport=request.param, workers=0
    )
    with running_server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}", OPTIONS) as opened:
        yield opened


@pytest.mark.parametrize("case", STALL_MESSAGES, ids=lambda case: case.name)
def test_a_worst_message_is_answered_as_it_must(channel: Any, case: StallMessage) -> None:
    assert answer_code(channel, case, case.make()) == case.code
    assert channel.unary_unary(LIVE)(b"", timeout=30) == b"\x08\x01"
