"""Callers who misbehave in frames, against every transport: nobody else notices, and the server goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.wire.conforming import TRANSPORTS, Running, channel, running
from tests.wire.raw_callers import HEADERS, WAIT_S, RawCaller, innocents, raw_caller

from fitserve_benchmarks.http2 import frame, frames, header_block
from fitserve_service.calls import MethodTable, StreamCall, UnaryCall

pytestmark = pytest.mark.parametrize("transport", sorted(TRANSPORTS))

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def echo(call: UnaryCall, message: bytes) -> None:
    call.reply(message)


class Echoes:
    """A stream that sends back what comes."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call

    def on_message(self, message: bytes) -> None:
        self._call.send(message)

    def on_half_close(self) -> None:
        self._call.finish()


TABLE = MethodTable({"/t.T/M": echo}, {})


def connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def grpc_frame(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return bytes((flag,)) + (len(message) if length is None else length).to_bytes(4, "big") + message


def test_a_raw_call_is_answered(transport: str) -> None:
    with running(transport, TABLE) as world, raw_caller(world.port) as caller:
        stream = caller.begin()
        caller.http.send_data(stream, grpc_frame(b"abc"), end_stream=True)
        caller.flush()
        assert caller.answer(stream)["grpc-status"] == "0"


def test_rapid_reset_costs_innocents_nothing(transport: str) -> None:
    with running(transport, TABLE) as world, innocents(world.port):
        for _ in range(4):
            with raw_caller(world.port) as caller:
                for _ in range(500):
                    caller.http.reset_stream(caller.begin())
                caller.flush()


def test_stalled_bodies_cost_innocents_nothing(transport: str) -> None:
    with running(transport, TABLE) as world, ExitStack() as stalled, innocents(world.port):
        for _ in range(32):
            caller = stalled.enter_context(raw_caller(world.port))
            for _ in range(63):
                caller.http.send_data(caller.begin(), grpc_frame(b"never", length=1_000)[:7])
            caller.flush()
        with channel(world.port) as late:
            assert late.unary_unary("/t.T/M")(b"late", timeout=WAIT_S) == b"late"


def test_calls_that_arrive_while_the_loop_is_busy_are_all_answered(transport: str) -> None:
    is_busy, go = threading.Event(), threading.Event()

    def block(call: UnaryCall, message: bytes) -> None:
        is_busy.set()
        go.wait(WAIT_S)
        call.reply(message)

    table = MethodTable({"/t.T/M": echo, "/t.T/Block": block}, {})
    with running(transport, table) as world, channel(world.port) as opened, ExitStack() as busy:
        blocked = opened.unary_unary("/t.T/Block").future(b"block", timeout=WAIT_S)
        assert is_busy.wait(WAIT_S)
        callers = [busy.enter_context(raw_caller(world.port)) for _ in range(50)]
        streams = [(caller, caller.begin()) for caller in callers for _ in range(63)]
        for caller, stream in streams:
            caller.http.send_data(stream, grpc_frame(b"abc"), end_stream=True)
        for caller in callers:
            caller.flush()
        go.set()
        assert {caller.answer(stream).get("grpc-status") for caller, stream in streams} == {"0"}
        assert blocked.result() == b"block"


def test_a_stalled_body_ends_at_its_deadline(transport: str) -> None:
    with running(transport, TABLE) as world, raw_caller(world.port) as caller:
        stream = caller.http.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", "/t.T/M"), (":authority", "localhost")]
        grpc_headers = [("te", "trailers"), ("content-type", "application/grpc"), ("grpc-timeout", "100m")]
        caller.http.send_headers(stream, headers + grpc_headers)
        caller.flush()
        over = caller.answer(stream)
        assert over.get("grpc-status") == "4" or "reset" in over


def test_idle_sockets_cost_innocents_nothing(transport: str) -> None:
    with running(transport, TABLE) as world, ExitStack() as idle, innocents(world.port):
        for _ in range(200):
            idle.enter_context(connection(world.port))
        with channel(world.port) as late:
            assert late.unary_unary("/t.T/M")(b"late", timeout=WAIT_S) == b"late"


def test_a_socket_that_says_nothing_is_closed(transport: str) -> None:
    with running(transport, TABLE, handshake_timeout_s=0.1) as world, connection(world.port) as silent:
        while silent.recv(1_000):
            pass


def test_a_connection_that_gives_no_sign_of_life_is_closed(transport: str) -> None:
    with running(transport, TABLE, keepalive_s=1.0) as world, connection(world.port) as silent:
        silent.sendall(PREFACE + bytes(3) + b"\x04" + bytes(5))
        with channel(world.port) as alive:
            call = alive.unary_unary("/t.T/M")
            call(b"before", timeout=WAIT_S)
            while silent.recv(1_000):
                pass
            # The other was asked as well, and answered.
            assert call(b"after", timeout=WAIT_S) == b"after"


def test_a_caller_that_never_reads_costs_innocents_nothing(transport: str) -> None:
    def large(call: UnaryCall, message: bytes) -> None:
        call.reply(message if len(message) < 100 else b"x" * 4_000_000)

    table = MethodTable({"/t.T/M": large}, {})
    with running(transport, table) as world, innocents(world.port), ExitStack() as greedy:
        for _ in range(3):
            caller = greedy.enter_context(raw_caller(world.port))
            for _ in range(10):
                caller.http.send_data(caller.begin(), grpc_frame(b"x" * 100), end_stream=True)
            caller.flush()
        with channel(world.port) as late:
            assert late.unary_unary("/t.T/M")(b"late", timeout=WAIT_S) == b"late"


@pytest.mark.parametrize(
    "body",
    [
        grpc_frame(b"abc", length=2**31 - 1),
        grpc_frame(b"abc", length=2**32 - 1),
        grpc_frame(b"abc", length=4),
        grpc_frame(b"abc")[:3],
        b"\0",
    ],
)
def test_a_malformed_message_is_refused(transport: str, body: bytes) -> None:
    seen: list[bytes] = []

    def look(call: UnaryCall, message: bytes) -> None:
        seen.append(message)
        call.reply(message)

    with running(transport, MethodTable({"/t.T/M": look}, {})) as world, raw_caller(world.port) as caller:
        stream = caller.begin()
        caller.http.send_data(stream, body, end_stream=True)
        caller.flush()
        over = caller.answer(stream)
        assert over.get("grpc-status", "none") != "0"
        with channel(world.port) as opened:
            assert opened.unary_unary("/t.T/M")(b"after", timeout=WAIT_S) == b"after"
    assert seen == [b"after"]


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "text/html"},
        {"content_type": None},
        {"te": None},
        {"method": "GET"},
        {"method": "PUT"},
        {"path": "t.T/M"},
        {"path": "/"},
        {"path": "/" + "x" * 5_000},
        {"path": "/t.T/M%00"},
        {"scheme": "ftp"},
    ],
)
def test_odd_headers_never_stop_the_server(transport: str, changes: dict[str, str | None]) -> None:
    with running(transport, TABLE) as world, raw_caller(world.port) as caller:
        stream = caller.begin(**changes)
        caller.http.send_data(stream, grpc_frame(b"abc"), end_stream=True)
        caller.flush()
        caller.answer(stream)
        with channel(world.port) as opened:
            assert opened.unary_unary("/t.T/M")(b"after", timeout=WAIT_S) == b"after"


@settings(max_examples=25, deadline=None)
@given(noise=st.lists(st.binary(min_size=1, max_size=200), max_size=8), has_preface=st.booleans())
def test_bytes_that_are_no_frames_never_stop_the_server(transport: str, noise: list[bytes], has_preface: bool) -> None:
    with running(transport, TABLE) as world:
        with connection(world.port) as caller, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in ([PREFACE] if has_preface else []) + noise:
                caller.sendall(piece)
        with channel(world.port) as opened:
            assert opened.unary_unary("/t.T/M")(b"after", timeout=WAIT_S) == b"after"


@settings(max_examples=25, deadline=None)
@given(
    body=st.binary(max_size=64),
    cut=st.lists(st.integers(0, 64), max_size=3),
    end=st.sampled_from(["end", "reset", "hang up"]),
)
def test_any_body_in_any_pieces_never_stops_the_server(transport: str, body: bytes, cut: list[int], end: str) -> None:
    def misbehave(caller: RawCaller) -> None:
        stream = caller.begin()
        for start, stop in zip([0, *sorted(cut)], [*sorted(cut), len(body)], strict=True):
            caller.http.send_data(stream, body[start:stop])
            caller.flush()
        if end == "end":
            caller.http.end_stream(stream)
            caller.flush()
            caller.answer(stream)
        elif end == "reset":
            caller.http.reset_stream(stream)
            caller.flush()

    with running(transport, TABLE) as world, raw_caller(world.port) as caller:
        misbehave(caller)
        with channel(world.port) as opened:
            assert opened.unary_unary("/t.T/M")(b"after", timeout=WAIT_S) == b"after"


@pytest.mark.parametrize("path", ["/t.T/M", "/t.T/S"])
@pytest.mark.parametrize("count", [100, 1_000])
def test_one_large_header_that_is_named_often_is_refused(transport: str, path: str, count: int) -> None:
    """Callers that have not acknowledged the server's settings may send 16 MiB of metadata in a few kilobytes."""
    with (
        running(transport, MethodTable({"/t.T/M": echo}, {"/t.T/S": Echoes})) as world,
        raw_caller(world.port) as caller,
    ):
        stream = caller.http.get_next_available_stream_id()
        headers = HEADERS | {":path": path}
        caller.http.send_headers(stream, [*headers.items(), *[("a", "b" * 4_000)] * count])
        caller.flush()
        assert caller.answer(stream)["grpc-status"] == "8"


def test_a_path_that_is_no_text_ends_nothing(transport: str) -> None:
    """grpc.aio's own loop dies of it, and would leave a server that refuses connections."""
    block = header_block("localhost", "/t.T/M").replace(b"/t.T/M", b"/t.\xf3/M")
    said = PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 1, 1, grpc_frame(b"abc"))
    with running(transport, TABLE) as world:
        for _ in range(3):
            with connection(world.port) as rude:
                rude.sendall(said)
                # It is answered with an error, or its connection ends: something comes before anybody goes on.
                while (chunk := rude.recv(1 << 16)) and not any(kind in (1, 7) for kind, *_ in frames(chunk)):
                    continue
            assert asked_again(world.port, b"innocent") == b"innocent"


def asked_again(port: int, message: bytes) -> bytes:
    """Calls as our clients do: what came into a server that just ended is called again."""
    for _ in range(5):
        with channel(port) as opened:
            try:
                return opened.unary_unary("/t.T/M")(message, timeout=WAIT_S, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                    raise
    raise AssertionError("five calls were lost, one after the other")


def test_a_server_that_such_a_path_ended_stops_in_its_time(transport: str) -> None:
    """What was under way in it is given up with everything else."""
    block = header_block("localhost", "/t.T/M").replace(b"/t.T/M", b"/t.\xf3/M")
    stalled = frame(1, 4, 1, header_block("localhost", "/t.T/M"))
    with connection_to(transport) as (world, rude):
        rude.sendall(PREFACE + frame(4, 0, 0, b"") + stalled + frame(1, 4, 3, block) + frame(0, 1, 3, grpc_frame(b"x")))
        while (chunk := rude.recv(1 << 16)) and not any(kind in (1, 7) for kind, *_ in frames(chunk)):
            continue
        world.stop(0)
        world.thread.join(WAIT_S / 4)
        assert not world.thread.is_alive()


@contextlib.contextmanager
def connection_to(transport: str) -> Iterator[tuple[Running, socket.socket]]:
    with running(transport, TABLE) as world, connection(world.port) as opened:
        yield world, opened
