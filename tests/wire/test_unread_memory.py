"""What a caller does not read is bounded in bytes, on both transports: measured by what the process holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.settings import SettingCodes
from tests.wire.conforming import TRANSPORTS, WAIT_S, Echo, channel, echo, running
from tests.wire.raw_callers import RawCaller, raw_caller
from tests.wire.serving import connected, serving
from tests.wire.test_transport_hostile import grpc_frame

from fitserve_oip import health_pb2, reflection_pb2
from fitserve_service.allocator import return_freed_memory
from fitserve_service.calls import MethodTable, UnaryCall
from fitserve_service.process_memory import read_memory
from fitserve_service.stream_room import MAX_BYTES

pytestmark = pytest.mark.parametrize("transport", sorted(TRANSPORTS))

MIB = 1 << 20
ANSWER = 8 * MIB
SLACK = 128 * MIB
"""What arenas and grpc's own buffers may take beside what is counted."""


def held_bytes() -> int:
    """Resident memory without what has been freed: the callers are in this process, and read answers of their own."""
    return_freed_memory()
    memory = read_memory()
    assert memory is not None
    return memory.resident_bytes


def large(call: UnaryCall, _: bytes) -> None:
    call.reply(b"x" * ANSWER)


def never_reading(caller: RawCaller) -> None:
    caller.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    caller.flush()


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_unary_answers_that_nobody_reads_are_bounded_and_readers_lose_none(transport: str) -> None:
    table = MethodTable({"/t.T/M": large, "/t.T/Echo": echo}, {})
    before = held_bytes()
    with (
        running(transport, table, max_unread_bytes=8 * ANSWER) as world,
        raw_caller(world.port) as caller,
        channel(world.port) as opened,
    ):
        never_reading(caller)
        for _ in range(60):
            caller.http.send_data(caller.begin(), grpc_frame(b""), end_stream=True)
            caller.flush()
            assert opened.unary_unary("/t.T/Echo")(b"small", timeout=WAIT_S) == b"small"
        for _ in range(5):
            assert len(opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)) == ANSWER
        until(lambda: held_bytes() - before < 8 * ANSWER + SLACK)


def test_an_answer_that_is_not_read_ends_with_a_reason(transport: str) -> None:
    table = MethodTable({"/t.T/M": large}, {})
    with running(transport, table, max_unread_bytes=4 * ANSWER) as world, raw_caller(world.port) as caller:
        never_reading(caller)
        streams = [caller.begin() for _ in range(6)]
        for stream in streams:
            caller.http.send_data(stream, grpc_frame(b""), end_stream=True)
        caller.flush()
        # Half of the bytes may be of one connection: `fast` cuts off the oldest, `stock` refuses the newest.
        for stream in streams[:4] if transport == "fast" else streams[-4:]:
            assert caller.answer(stream)["grpc-status"] == "8"


def test_large_answers_of_a_stream_that_nobody_reads_are_few(transport: str) -> None:
    taken = 0

    class Amplify(Echo):
        def on_message(self, _: bytes) -> None:
            nonlocal taken
            taken += 1
            self.call.send(b"x" * ANSWER)

    before = held_bytes()
    table = MethodTable({"/t.T/M": echo}, {"/t.T/S": Amplify})
    with running(transport, table) as world, raw_caller(world.port) as caller, channel(world.port) as opened:
        never_reading(caller)
        for _ in range(10):
            stream = caller.begin(path="/t.T/S")
            for _ in range(40):
                caller.http.send_data(stream, grpc_frame(b"x"))
        caller.flush()
        until(lambda: taken >= 10)
        for _ in range(200):
            opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)
        assert taken <= 10 * (MAX_BYTES // ANSWER + 1)
        assert held_bytes() - before < 20 * ANSWER + SLACK


def test_watch_keeps_no_name_that_no_model_has_and_a_connection_has_so_many(transport: str, tmp_path: Path) -> None:
    with serving(tmp_path, transport=transport) as server, connected(server) as opened:
        watch = opened.stream_stream("/grpc.health.v1.Health/Watch")

        def begun(name: str) -> Any:
            call = watch(iter([health_pb2.HealthCheckRequest(service=name).SerializeToString()]), timeout=WAIT_S)
            next(call)
            return call

        def code(name: str) -> grpc.StatusCode:
            with pytest.raises(grpc.RpcError) as caught:
                begun(name)
            found: grpc.StatusCode = caught.value.code()
            return found

        # Each is given back: else the connection would have no watch left.
        assert {code("n" * 129) for _ in range(70)} == {grpc.StatusCode.NOT_FOUND}
        assert {code("n" * (1 << 20)) for _ in range(3)} == {grpc.StatusCode.NOT_FOUND}
        calls = [begun("n" * 128) for _ in range(64)]
        assert code("") is grpc.StatusCode.RESOURCE_EXHAUSTED
        calls.pop().cancel()
        until(lambda: is_begun(begun))
        for call in calls:
            call.cancel()


def is_begun(begin: Callable[[str], Any]) -> bool:
    try:
        begin("").cancel()
    except grpc.RpcError:
        return False
    return True


def test_reflection_repeats_no_long_request(transport: str, tmp_path: Path) -> None:
    method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    long = reflection_pb2.ServerReflectionRequest(host="h" * 5_000, list_services="")
    with serving(tmp_path, transport=transport) as server, connected(server) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            next(opened.stream_stream(method)(iter([long.SerializeToString()]), timeout=WAIT_S))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
