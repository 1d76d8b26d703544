"""Calls whose message does not come: how many there may be, how long they may wait, and who loses by it."""

from __future__ import annotations

import pytest
from tests.wire.conforming import TRANSPORTS, channel, running
from tests.wire.raw_callers import WAIT_S, innocents, raw_caller
from tests.wire.test_transport_hostile import TABLE, grpc_frame

pytestmark = pytest.mark.parametrize("transport", sorted(TRANSPORTS))

DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = "4", "8"


def test_a_call_without_a_message_is_ended_in_time(transport: str) -> None:
    with running(transport, TABLE, message_limit_s=0.1) as world, raw_caller(world.port) as caller:
        stream = caller.begin()
        caller.flush()
        assert caller.answer(stream)["grpc-status"] == DEADLINE_EXCEEDED
        torn = caller.begin()
        caller.http.send_data(torn, grpc_frame(b"never", length=1_000)[:7])
        caller.flush()
        assert caller.answer(torn)["grpc-status"] == DEADLINE_EXCEEDED


def test_beyond_the_bound_the_oldest_is_given_up(transport: str) -> None:
    with running(transport, TABLE, max_waiting_calls=5) as world, raw_caller(world.port) as caller:
        streams = [caller.begin() for _ in range(8)]
        caller.flush()
        for oldest in streams[:3]:
            assert caller.answer(oldest)["grpc-status"] == RESOURCE_EXHAUSTED
        for newest in streams[3:]:
            caller.http.send_data(newest, grpc_frame(b"abc"), end_stream=True)
        caller.flush()
        for newest in streams[3:]:
            assert caller.answer(newest)["grpc-status"] == "0"


def test_who_stalls_thousands_of_calls_costs_innocents_nothing(transport: str) -> None:
    with running(transport, TABLE, max_waiting_calls=100) as world, innocents(world.port):
        for _ in range(20):
            with raw_caller(world.port) as caller:
                streams = [caller.begin() for _ in range(63)]
                caller.flush()
                assert streams
        with channel(world.port) as late:
            assert late.unary_unary("/t.T/M")(b"late", timeout=WAIT_S) == b"late"
