"""Every abuse of HTTP/2 that the benchmark measures, in short, against each transport: innocents lose nothing."""

from __future__ import annotations

import time

import pytest
from tests.wire.conforming import TRANSPORTS, channel, running
from tests.wire.raw_callers import WAIT_S, innocents

from fitserve_benchmarks.hostile_frames import ATTACKS
from fitserve_service.calls import MethodTable, UnaryCall

METHODS = (
    "/t.T/M",
    "/fitserve.inference.v1.InferenceService/Predict",
    "/inference.GRPCInferenceService/ServerMetadata",
)


def echo(call: UnaryCall, message: bytes) -> None:
    call.reply(message)


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
@pytest.mark.parametrize("kind", sorted(ATTACKS))
def test_innocents_lose_nothing(transport: str, kind: str) -> None:
    with running(transport, MethodTable(dict.fromkeys(METHODS, echo), {})) as world:
        with innocents(world.port):
            assert ATTACKS[kind]("127.0.0.1", world.port, time.monotonic() + 0.3) > 0
        with channel(world.port) as late:
            assert late.unary_unary("/t.T/M")(b"late", timeout=WAIT_S) == b"late"
