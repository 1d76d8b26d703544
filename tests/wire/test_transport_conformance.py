"""What every transport does, whatever carries it: one suite, parametrized by transport."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.wire.conforming import TRANSPORTS, channel, running

from fitserve_service.calls import MethodTable, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from fitserve_service.errors import CODES, Reason, ServiceError
from fitserve_service.status import DETAILS_KEY
from fitserve_service.transport import ListenError, TransportOptions

pytestmark = pytest.mark.parametrize("transport", sorted(TRANSPORTS))

WAIT_S = 20.0
"""Longer than any of this takes; what runs into it has failed."""


def unary(method: UnaryMethod) -> MethodTable:
    return MethodTable({"/t.T/M": method}, {})


def stream(method: StreamMethod) -> MethodTable:
    return MethodTable({}, {"/t.T/S": method})


def echo(call: UnaryCall, message: bytes) -> None:
    call.reply(message)


def details_of(error: Any) -> tuple[Status, ErrorInfo]:
    trailing: dict[str, Any] = dict(error.trailing_metadata())
    status = Status.FromString(trailing[DETAILS_KEY])
    info = ErrorInfo()
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    return status, info


def failure(opened: Any, message: bytes = b"", method: str = "/t.T/M", **kwargs: object) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        opened.unary_unary(method)(message, **{"timeout": WAIT_S, **kwargs})
    return caught.value


class Echo:
    """Answers each message with itself, and the half-close with the end."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call

    def on_message(self, message: bytes) -> None:
        self.call.send(message)

    def on_half_close(self) -> None:
        self.call.finish()


@settings(max_examples=30, deadline=None)
@given(messages=st.lists(st.binary(max_size=300), max_size=8))
def test_bytes_come_back_unchanged(transport: str, messages: list[bytes]) -> None:
    with running(transport, unary(echo)) as world, channel(world.port) as opened:
        for message in messages:
            assert opened.unary_unary("/t.T/M")(message, timeout=WAIT_S) == message


def test_an_answer_may_come_later_and_from_post(transport: str) -> None:
    def later(call: UnaryCall, message: bytes) -> None:
        threading.Thread(target=lambda: world.transport.post(lambda: call.reply(message[::-1]))).start()

    with running(transport, unary(later)) as world, channel(world.port) as opened:
        assert opened.unary_unary("/t.T/M")(b"abc", timeout=WAIT_S) == b"cba"


def test_only_the_first_answer_counts(transport: str) -> None:
    def twice(call: UnaryCall, _: bytes) -> None:
        call.reply(b"first")
        call.reply(b"second")
        call.fail(ServiceError(Reason.INVALID_INPUT, "third"))

    with running(transport, unary(twice)) as world, channel(world.port) as opened:
        assert opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S) == b"first"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_error_travels_with_code_text_and_one_error_info(transport: str, reason: Reason) -> None:
    def refuse(_: UnaryCall, message: bytes) -> None:
        raise ServiceError(reason, f"input 'größe': expected {message!r}", input="größe")

    with running(transport, unary(refuse)) as world, channel(world.port) as opened:
        error = failure(opened, b"x")
    status, info = details_of(error)
    assert error.code().value[0] == CODES[reason] == status.code
    assert error.details() == status.message == "input 'größe': expected b'x'"
    assert (info.reason, info.domain, dict(info.metadata)) == (reason.value, "fitserve", {"input": "größe"})


def test_a_long_or_broken_text_still_travels(transport: str) -> None:
    def refuse(call: UnaryCall, _: bytes) -> None:
        call.fail(ServiceError(Reason.INVALID_INPUT, "\ud800" + "é" * 100_000, input="\n" * 9_000))

    with running(transport, unary(refuse)) as world, channel(world.port) as opened:
        error = failure(opened)
    status, _ = details_of(error)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(status.message) <= 1024


def test_an_unknown_exception_is_an_incident_and_its_text_stays_here(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: UnaryCall, __: bytes) -> None:
        raise RuntimeError("secret /etc/path")

    with caplog.at_level(logging.ERROR), running(transport, unary(broken)) as world, channel(world.port) as opened:
        error = failure(opened)
        assert failure(opened).code() is grpc.StatusCode.INTERNAL
    status, info = details_of(error)
    incident = info.metadata["incident"]
    assert error.code() is grpc.StatusCode.INTERNAL
    assert incident in status.message
    assert "secret" not in str(status)
    logged = [record for record in caplog.records if incident in record.getMessage()]
    assert len(logged) == 1
    assert logged[0].exc_info is not None


def test_an_unknown_method_is_unimplemented(transport: str) -> None:
    with running(transport, unary(echo)) as world, channel(world.port) as opened:
        for method in ("/t.T/Other", "/other.T/M", "/t.T/M/", "/T/M"):
            error = failure(opened, b"x", method)
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert details_of(error)[1].reason == "UNKNOWN_METHOD"
        with pytest.raises(grpc.RpcError) as caught:
            list(opened.stream_stream("/t.T/Other")(iter([b"a", b"b"]), timeout=WAIT_S))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert opened.unary_unary("/t.T/M")(b"still", timeout=WAIT_S) == b"still"


def test_a_call_sees_its_method_metadata_and_deadline(transport: str) -> None:
    seen: list[UnaryCall] = []

    def look(call: UnaryCall, _: bytes) -> None:
        seen.append(call)
        call.reply(b"")

    with running(transport, unary(look)) as world, channel(world.port) as opened:
        before = time.monotonic()
        opened.unary_unary("/t.T/M")(b"", timeout=100, metadata=(("key", "value"), ("key-bin", b"\x00\xff")))
        opened.unary_unary("/t.T/M")(b"")
    with_deadline, without = seen
    assert with_deadline.method == "/t.T/M"
    assert {("key", "value"), ("key-bin", b"\x00\xff")} <= set(with_deadline.metadata)
    assert with_deadline.deadline_s is not None
    assert before + 90 < with_deadline.deadline_s < time.monotonic() + 101
    assert without.deadline_s is None


def test_trailing_metadata_arrives(transport: str) -> None:
    def timed(call: UnaryCall, message: bytes) -> None:
        call.reply(message, (("queue-us", "12"), ("raw-bin", b"\x00")))

    with running(transport, unary(timed)) as world, channel(world.port) as opened:
        _, call = opened.unary_unary("/t.T/M").with_call(b"", timeout=WAIT_S)
    assert {("queue-us", "12"), ("raw-bin", b"\x00")} <= {tuple(pair) for pair in call.trailing_metadata()}


def test_a_deadline_of_zero_never_reaches_the_method(transport: str) -> None:
    seen: list[bytes] = []

    def look(call: UnaryCall, message: bytes) -> None:
        seen.append(message)
        call.reply(b"")

    with running(transport, unary(look)) as world, channel(world.port) as opened:
        opened.unary_unary("/t.T/M")(b"warm", timeout=WAIT_S)
        error = failure(opened, b"late", timeout=0)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        opened.unary_unary("/t.T/M")(b"after", timeout=WAIT_S)
    assert seen == [b"warm", b"after"]


def test_a_cancelled_call_is_told_and_its_neighbours_are_answered(transport: str) -> None:
    waiting: list[tuple[UnaryCall, bytes]] = []
    arrived = threading.Semaphore(0)
    gone = threading.Event()

    def hold(call: UnaryCall, message: bytes) -> None:
        call.on_cancel(lambda: pytest.fail("replaced by the next line"))
        call.on_cancel(gone.set)
        waiting.append((call, message))
        arrived.release()

    with running(transport, unary(hold)) as world, channel(world.port) as opened:
        method = opened.unary_unary("/t.T/M")
        futures = {message: method.future(message, timeout=WAIT_S) for message in (b"a", b"b")}
        assert arrived.acquire(timeout=WAIT_S)
        assert arrived.acquire(timeout=WAIT_S)
        futures[b"a"].cancel()
        assert gone.wait(WAIT_S)
        for call, message in waiting:
            world.transport.post(lambda call=call, message=message: call.reply(message))  # type: ignore[misc]
        assert futures[b"b"].result() == b"b"
        assert futures[b"a"].code() is grpc.StatusCode.CANCELLED


def test_a_deadline_that_passes_in_the_method_cancels_it(transport: str) -> None:
    gone = threading.Event()

    def hold(call: UnaryCall, _: bytes) -> None:
        call.on_cancel(gone.set)

    with running(transport, unary(hold)) as world, channel(world.port) as opened:
        error = failure(opened, timeout=0.2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert gone.wait(WAIT_S)


@pytest.mark.parametrize("excess", [1, 3_000, 1_000_000])
def test_a_message_over_the_limit_is_refused_and_one_at_the_limit_taken(transport: str, excess: int) -> None:
    limit = 10_000
    with running(transport, unary(echo), max_message_bytes=limit) as world, channel(world.port) as opened:
        assert len(opened.unary_unary("/t.T/M")(b"x" * limit, timeout=WAIT_S)) == limit
        error = failure(opened, b"x" * (limit + excess))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        if excess <= limit:
            assert details_of(error)[1].reason == "TOO_LARGE"
        assert opened.unary_unary("/t.T/M")(b"x", timeout=WAIT_S) == b"x"


def test_an_answer_larger_than_the_request_limit_is_sent(transport: str) -> None:
    def large(call: UnaryCall, _: bytes) -> None:
        call.reply(b"x" * 8_000_000)

    with running(transport, unary(large), max_message_bytes=1000) as world, channel(world.port) as opened:
        assert len(opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)) == 8_000_000


def test_many_calls_at_once_are_each_answered(transport: str) -> None:
    with running(transport, unary(echo)) as world, channel(world.port) as opened, ThreadPoolExecutor(16) as pool:
        method = opened.unary_unary("/t.T/M")
        messages = [str(index).encode() for index in range(400)]
        assert list(pool.map(lambda message: method(message, timeout=WAIT_S), messages)) == messages


def test_what_is_called_soon_runs_after_it_is_asked_for_and_later_after_the_delay(transport: str) -> None:
    order: list[str] = []

    def look(call: UnaryCall, message: bytes) -> None:
        def later() -> None:
            order.append("later")
            call.reply(message)

        world.transport.call_later(0.01, later)
        world.transport.call_soon(lambda: order.append("soon"))
        order.append("now")

    with running(transport, unary(look)) as world, channel(world.port) as opened:
        opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)
    assert order == ["now", "soon", "later"]


def test_a_stream_is_answered_in_order(transport: str) -> None:
    sent = [str(index).encode() for index in range(300)]
    with running(transport, stream(Echo)) as world, channel(world.port) as opened:
        assert list(opened.stream_stream("/t.T/S")(iter(sent), timeout=WAIT_S)) == sent
        assert list(opened.stream_stream("/t.T/S")(iter([]), timeout=WAIT_S)) == []


def test_a_stream_may_be_answered_long_after_the_half_close(transport: str) -> None:
    class Late(Echo):
        def on_message(self, message: bytes) -> None:
            pass

        def on_half_close(self) -> None:
            def answer() -> None:
                self.call.send(b"late")
                self.call.finish()

            threading.Thread(target=lambda: world.transport.post(answer)).start()

    with running(transport, stream(Late)) as world, channel(world.port) as opened:
        assert list(opened.stream_stream("/t.T/S")(iter([b"a"]), timeout=WAIT_S)) == [b"late"]


def test_an_error_ends_a_stream_after_what_was_sent(transport: str) -> None:
    class Failing(Echo):
        def on_message(self, message: bytes) -> None:
            self.call.send(message)
            raise ServiceError(Reason.QUEUE_FULL, "queue: full")

    with running(transport, stream(Failing)) as world, channel(world.port) as opened:
        answers = opened.stream_stream("/t.T/S")(iter([b"a", b"b"]), timeout=WAIT_S)
        assert next(answers) == b"a"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(caught.value)[1].reason == "QUEUE_FULL"


def test_a_stream_that_the_method_refuses_at_once_fails(transport: str) -> None:
    def refuse(_: StreamCall) -> Echo:
        raise ServiceError(Reason.DRAINING, "server: draining")

    with running(transport, stream(refuse)) as world, channel(world.port) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            list(opened.stream_stream("/t.T/S")(iter([b"a"]), timeout=WAIT_S))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_cancelled_stream_is_told(transport: str) -> None:
    gone = threading.Event()

    class Watching(Echo):
        def __init__(self, call: StreamCall) -> None:
            super().__init__(call)
            call.on_cancel(gone.set)

        def on_half_close(self) -> None:
            """Has more to answer."""

    with running(transport, stream(Watching)) as world, channel(world.port) as opened:
        hold = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"a"
            hold.wait(WAIT_S)

        answers = opened.stream_stream("/t.T/S")(requests())
        assert next(answers) == b"a"
        answers.cancel()
        hold.set()
        assert gone.wait(WAIT_S)


def test_a_caller_that_never_reads_stops_being_read_from(transport: str) -> None:
    taken = 0

    class Amplify(Echo):
        def on_message(self, _: bytes) -> None:
            nonlocal taken
            taken += 1
            self.call.send(b"x" * 1_000_000)

    def flood(opened: Any) -> list[bytes]:
        answers = opened.stream_stream("/t.T/S")(iter([b"a"] * 2_000), timeout=WAIT_S)
        first = next(answers)
        for _ in range(50):
            opened.unary_unary("/t.T/M")(b"", timeout=WAIT_S)
        answers.cancel()
        return [first]

    table = MethodTable({"/t.T/M": echo}, {"/t.T/S": Amplify})
    with running(transport, table) as world, channel(world.port) as opened:
        flood(opened)
    assert 1 <= taken < 1_000


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
    server = TRANSPORTS[transport](TransportOptions(host=host, port=port))
    server.run(unary(echo), lambda _: pytest.fail("it listens"))


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_request_arrives_as_it_was(transport: str, compression: grpc.Compression) -> None:
    message = b"0123456789" * 10_000
    with running(transport, unary(echo)) as world, channel(world.port) as opened:
        assert opened.unary_unary("/t.T/M")(message, timeout=WAIT_S, compression=compression) == message


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_request_is_measured_as_it_is_taken_apart(transport: str, compression: grpc.Compression) -> None:
    with running(transport, unary(echo), max_message_bytes=10_000) as world, channel(world.port) as opened:
        for size in (10_001, 10_000_000):
            error = failure(opened, b"\0" * size, compression=compression)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_is_posted_from_many_threads_runs_once_each_and_in_order(transport: str) -> None:
    ran: list[tuple[int, int]] = []
    done = threading.Event()

    def post_all(world: Any, source: int) -> None:
        for index in range(500):
            world.transport.post(lambda index=index: ran.append((source, index)))

    with running(transport, unary(echo)) as world, ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(post_all, world, source) for source in range(4)]:
            future.result()
        world.transport.post(done.set)
        assert done.wait(WAIT_S)
    for source in range(4):
        assert [pair for pair in ran if pair[0] == source] == [(source, index) for index in range(500)]


def test_a_callback_that_fails_leaves_the_loop_serving(transport: str) -> None:
    def fail() -> None:
        raise RuntimeError("of one callback")

    def spread(call: UnaryCall, message: bytes) -> None:
        call.on_cancel(fail)
        world.transport.post(fail)
        world.transport.call_soon(fail)
        world.transport.call_later(0, fail)
        world.transport.call_later(0.01, lambda: call.reply(message))

    with running(transport, unary(spread)) as world, channel(world.port) as opened:
        assert opened.unary_unary("/t.T/M")(b"a", timeout=WAIT_S) == b"a"
        assert opened.unary_unary("/t.T/M")(b"b", timeout=WAIT_S) == b"b"


def test_trailing_metadata_that_cannot_be_sent_is_the_servers_fault(transport: str) -> None:
    def careless(call: UnaryCall, message: bytes) -> None:
        call.reply(message, (("Bad Key", "x"),) if message == b"bad" else ())

    with running(transport, unary(careless)) as world, channel(world.port) as opened:
        assert failure(opened, b"bad").code() is grpc.StatusCode.INTERNAL
        assert opened.unary_unary("/t.T/M")(b"good", timeout=WAIT_S) == b"good"


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

    def keep(call: UnaryCall, _: bytes) -> None:
        waiting.append(call)
        arrived.set()

    with running(transport, unary(keep)) as world, channel(world.port) as held, channel(world.port) as other:
        future = held.unary_unary("/t.T/M").future(b"", timeout=WAIT_S)
        assert arrived.wait(WAIT_S)
        world.stop(WAIT_S)
        assert failure(other).code() is grpc.StatusCode.UNAVAILABLE
        world.transport.post(lambda: waiting[0].reply(b""))
        assert future.result() == b""
    assert len(waiting) == 1
