"""How every transport starts and stops: one suite, parametrized by transport."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import grpc
import pytest
from tests.wire.conforming import CONFORMING, WAIT_S, Echo, channel, echo, make_transport, running, unary

from fitserve_service.calls import MethodTable, UnaryCall
from fitserve_service.listening import ListenError
from fitserve_service.transport import TransportOptions

pytestmark = pytest.mark.parametrize("transport", CONFORMING)


def test_stopping_answers_what_is_in_flight_and_ends_idle_streams(transport: str) -> None:
    waiting: list[UnaryCall] = []
    arrived = threading.Event()
    hold = threading.Event()

    def keep(call: UnaryCall, _: bytes) -> None:
        waiting.append(call)
        arrived.set()

    def requests() -> Iterator[bytes]:
        yield b"a"
        hold.wait(WAIT_S)

    table = MethodTable({"/t.T/M": keep}, {"/t.T/S": Echo})
    with running(transport, table) as world, channel(world.port) as opened:
        future = opened.unary_unary("/t.T/M").future(b"", timeout=WAIT_S)
        answers = opened.stream_stream("/t.T/S")(requests(), timeout=WAIT_S)
        assert next(answers) == b"a"
        assert arrived.wait(WAIT_S)
        world.stop(WAIT_S)
        assert list(answers) == []
        hold.set()
        assert world.thread.is_alive()
        world.transport.post(lambda: waiting[0].reply(b"in time"))
        assert future.result() == b"in time"
        world.thread.join(WAIT_S)
        assert not world.thread.is_alive()


def test_stopping_cancels_what_outlives_the_grace_time(transport: str) -> None:
    gone = threading.Event()
    arrived = threading.Event()

    def keep(call: UnaryCall, _: bytes) -> None:
        call.on_cancel(gone.set)
        arrived.set()

    with running(transport, unary(keep)) as world, channel(world.port) as opened:
        future = opened.unary_unary("/t.T/M").future(b"", timeout=WAIT_S)
        assert arrived.wait(WAIT_S)
        world.stop(0.05)
        world.thread.join(WAIT_S)
        assert gone.is_set()
        assert future.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_port_in_use_is_said_in_words(transport: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is in use"):
            start_on("127.0.0.1", port, transport)


def test_two_servers_do_not_share_a_port(transport: str) -> None:
    with running(transport, unary(echo)) as world, pytest.raises(ListenError, match="is in use"):
        start_on("127.0.0.1", world.port, transport)


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "\udc80"])
def test_a_host_of_another_machine_is_said_in_words(transport: str, host: str) -> None:
    with pytest.raises(ListenError, match="expected a"):
        start_on(host, 0, transport)


def start_on(host: str, port: int, transport: str) -> None:
    server = make_transport(transport, TransportOptions(host=host, port=port))
    server.run(unary(echo), lambda _: pytest.fail("it listens"))


def test_callbacks_posted_after_the_end_are_dropped(transport: str) -> None:
    with running(transport, unary(echo)) as world:
        world.stop(0)
        world.thread.join(WAIT_S)
    for _ in range(100):
        world.transport.post(lambda: pytest.fail("the loop has ended"))


def test_stopping_an_idle_server_with_open_connections_ends(transport: str) -> None:
    with running(transport, unary(echo)) as world, channel(world.port) as opened:
        opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)
        with socket.create_connection(("127.0.0.1", world.port)):
            world.stop(0.1)
            world.stop(WAIT_S)
            world.thread.join(WAIT_S)
            assert not world.thread.is_alive()


def test_a_draining_server_takes_no_new_calls(transport: str) -> None:
    waiting: list[UnaryCall] = []
    arrived = threading.Event()

    def keep(call: UnaryCall, message: bytes) -> None:
        if message == b"held":
            waiting.append(call)
            arrived.set()
        else:
            call.reply(message)

    with running(transport, unary(keep)) as world, channel(world.port) as held, channel(world.port) as other:
        future = held.unary_unary("/t.T/M").future(b"held", timeout=WAIT_S)
        assert arrived.wait(WAIT_S)
        world.stop(WAIT_S)
        # It was asked to stop, and may still take a call until it does.
        new = (other.unary_unary("/t.T/M")(b"new", timeout=WAIT_S) for _ in range(10_000))
        with pytest.raises(grpc.RpcError) as refused:
            list(new)
        # One that arrives at the very moment is cancelled by the core, which no server can help: clients retry both.
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        world.transport.post(lambda: waiting[0].reply(b""))
        assert future.result() == b""
