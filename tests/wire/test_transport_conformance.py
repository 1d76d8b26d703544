"""What every transport does with unary calls, whatever carries it: one suite, parametrized by transport."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.wire.conforming import CONFORMING, WAIT_S, channel, details_of, echo, failure, running, unary

from fitserve_service.calls import UnaryCall
from fitserve_service.errors import CODES, Reason, ServiceError

pytestmark = pytest.mark.parametrize("transport", CONFORMING)


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


def test_a_call_that_was_answered_is_not_cancelled_later(transport: str) -> None:
    gone: list[bytes] = []

    def answer(call: UnaryCall, message: bytes) -> None:
        call.on_cancel(lambda: gone.append(message))
        if message == b"fail":
            raise ServiceError(Reason.QUEUE_FULL, "queue: full")
        call.reply(message)

    with running(transport, unary(answer)) as world, channel(world.port) as opened:
        for _ in range(20):
            assert opened.unary_unary("/t.T/M")(b"a", timeout=WAIT_S) == b"a"
            failure(opened, b"fail")
    assert gone == []


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
        # A client refuses metadata that is a little too long only now and then.
        errors = [failure(opened) for _ in range(100)]
    for error in errors:
        status, _ = details_of(error)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert 1_000 < len(status.message.encode()) <= 1_024


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
