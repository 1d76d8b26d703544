"""What every transport does with streams: one suite, parametrized by transport."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.wire.conforming import CONFORMING, WAIT_S, Echo, channel, details_of, echo, running, stream

from fitserve_service.calls import MethodTable, StreamCall
from fitserve_service.errors import Reason, ServiceError

pytestmark = pytest.mark.parametrize("transport", CONFORMING)


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
