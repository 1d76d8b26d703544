"""Many calls at once by ordinary clients without retries: none is lost but those that were cancelled."""

from __future__ import annotations

import asyncio
import random
import select
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.wire.conforming import CONFORMING, TRANSPORTS, channel, echo, running, unary
from tests.wire.raw_callers import WAIT_S, RawCaller, innocents, raw_caller
from tests.wire.test_transport_hostile import grpc_frame

from fitserve_benchmarks.http2 import PREFACE, frame, header_block
from fitserve_service import transport_fast, transport_stock
from fitserve_service.calls import MethodTable, UnaryCall
from fitserve_service.connections import PortConnections, has_headroom
from fitserve_service.transport import TransportOptions, channel_options

EACH = pytest.mark.parametrize("transport", CONFORMING)
CLEARTEXT = pytest.mark.parametrize("transport", sorted(TRANSPORTS))


class ClosedLoop:
    """Keeps so many calls in flight on one channel until `total` have ended, and counts how those not cancelled did."""

    def __init__(self, port: int, seed: int, *, in_flight: int, total: int, cancelled_share: float = 0.0) -> None:
        self._port, self._in_flight, self._left, self._open = port, in_flight, total, total
        self._random, self._share = random.Random(seed), cancelled_share
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._to_cancel: deque[grpc.Future[bytes]] = deque()
        self.codes: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        with channel(self._port) as opened:
            self._method = opened.unary_unary("/t.T/M")
            for _ in range(self._in_flight):
                self._send()
            while not self._is_over.is_set():
                while self._to_cancel:
                    self._to_cancel.popleft().cancel()
                self._is_over.wait(0.001)
        return self.codes

    def _send(self) -> None:
        with self._lock:
            if self._left == 0:
                return
            self._left -= 1
            is_cancelled = self._random.random() < self._share
        call = self._method.future(b"x" * 100, timeout=WAIT_S)
        call.add_done_callback(lambda ended: self._ended(ended, is_cancelled))
        if is_cancelled:
            self._to_cancel.append(call)

    def _ended(self, call: Any, is_cancelled: bool) -> None:
        self._send()
        with self._lock:
            if not is_cancelled:
                self.codes[call.code().name] += 1
            self._open -= 1
            if self._open == 0:
                self._is_over.set()


@EACH
@pytest.mark.parametrize("cancelled_share", [0.0, 0.3])
def test_a_thousand_in_flight_on_one_channel(transport: str, cancelled_share: float) -> None:
    with running(transport, unary(echo)) as world:
        codes = ClosedLoop(world.port, 1, in_flight=1_000, total=3_000, cancelled_share=cancelled_share).run()
    assert set(codes) == {"OK"}
    assert codes["OK"] == 3_000 or cancelled_share


@CLEARTEXT
def test_three_channels_of_three_hundred(transport: str) -> None:
    with running(transport, unary(echo)) as world, ThreadPoolExecutor(3) as pool:
        loops = [ClosedLoop(world.port, seed, in_flight=300, total=1_000, cancelled_share=0.3) for seed in range(3)]
        found = list(pool.map(ClosedLoop.run, loops))
    assert [set(codes) for codes in found] == [{"OK"}] * 3


@CLEARTEXT
def test_a_thousand_of_the_asynchronous_client(transport: str) -> None:
    async def call_all(port: int) -> list[bytes]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            plain: Any = opened  # grpc-stubs knows no calls of plain bytes.
            method = plain.unary_unary("/t.T/M")
            calls = [method(str(number).encode(), timeout=WAIT_S) for number in range(1_000)]
            for call in calls[::3]:
                call.cancel()
            return [await call for number, call in enumerate(calls) if number % 3]

    with running(transport, unary(echo)) as world:
        assert asyncio.run(call_all(world.port)) == [str(number).encode() for number in range(1_000) if number % 3]


@CLEARTEXT
def test_the_core_s_own_protection_loses_calls_without_headroom(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where this passes no more, the protection may come back."""

    def protected(options: TransportOptions) -> list[tuple[str, int]]:
        found = dict(channel_options(options))
        found |= {"grpc.http.overload_protection": 1, "grpc.http2.max_deallocating_streams": 0}
        return list(found.items())

    monkeypatch.setattr(transport_fast, "channel_options", protected)
    monkeypatch.setattr(transport_stock, "channel_options", protected)
    with running(transport, unary(echo), max_concurrent_streams=64) as world:
        codes = ClosedLoop(world.port, 1, in_flight=1_000, total=3_000).run()
    assert codes["UNAVAILABLE"] > 0


@CLEARTEXT
def test_a_hundred_calls_before_the_client_knows_the_limit(transport: str) -> None:
    """Clients assume 100 until the server's SETTINGS come: nghttp2, Node.js and Go among them."""
    with running(transport, unary(echo)) as world, raw_caller(world.port) as caller:
        streams = [caller.begin() for _ in range(100)]
        for stream in streams:
            caller.http.send_data(stream, grpc_frame(b"abc"), end_stream=True)
        caller.flush()
        assert {caller.answer(stream).get("grpc-status") for stream in streams} == {"0"}


@contextmanager
def blocked(transport: str, caller_count: int) -> Iterator[tuple[int, list[RawCaller], Callable[[], bytes]]]:
    """A server whose loop does nothing until the function is called, which returns what it did last.

    Its port and callers come first; each had an answer: before, it may begin no more calls than may be open.
    """
    is_busy, go = threading.Event(), threading.Event()

    def block(call: UnaryCall, message: bytes) -> None:
        is_busy.set()
        go.wait(WAIT_S)
        call.reply(message)

    table = MethodTable({"/t.T/M": echo, "/t.T/Block": block}, {})
    with running(transport, table) as world, channel(world.port) as opened, ExitStack() as stack:
        callers = [stack.enter_context(raw_caller(world.port)) for _ in range(caller_count)]
        assert all(answered(caller) for caller in callers)
        call = opened.unary_unary("/t.T/Block").future(b"block", timeout=WAIT_S)
        assert is_busy.wait(WAIT_S)

        def unblock() -> bytes:
            go.set()
            answer: bytes = call.result()
            return answer

        try:
            yield world.port, callers, unblock
        finally:
            go.set()


@CLEARTEXT
def test_a_thousand_cancelled_behind_a_busy_loop_cost_the_channel_no_other(transport: str) -> None:
    with blocked(transport, 0) as (port, _, unblock), channel(port) as opened:
        method = opened.unary_unary("/t.T/M")
        cancelled = [method.future(b"x" * 100, timeout=WAIT_S) for _ in range(1_000)]
        wait_until(lambda: max((each.unfinished_count for each in PortConnections(port).open_ones()), default=0) >= 100)
        for call in cancelled:
            call.cancel()
        wanted = [method.future(b"y", timeout=WAIT_S) for _ in range(200)]
        assert unblock() == b"block"
        assert {call.result() for call in wanted} == {b"y"}


@CLEARTEXT
def test_a_flood_of_resets_is_held_back_while_the_loop_is_behind(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    with blocked(transport, 6) as (port, callers, unblock):
        for _ in range(100):
            for caller in callers:
                for _ in range(100):
                    caller.http.reset_stream(caller.begin())
                caller.flush()
            if "held back" in caplog.text:
                break
        wait_until(lambda: "held back" in caplog.text)
        # Nobody else noticed, the flood is over, and its connections serve again.
        assert unblock() == b"block"
        for caller in callers:
            wait_until(partial(answered, caller))
        wait_until(lambda: max(each.unfinished_count for each in PortConnections(port).open_ones()) == 0)


@CLEARTEXT
def test_what_one_connection_has_reset_is_bounded_while_the_loop_is_behind(transport: str) -> None:
    if not has_headroom():
        pytest.skip("this grpcio does not know the bound")
    with blocked(transport, 1) as (port, (caller,), unblock):
        for _ in range(100):
            for _ in range(100):
                caller.http.reset_stream(caller.begin())
            caller.flush()
        wait_until(lambda: max(each.unfinished_count for each in PortConnections(port).open_ones()) > 500)
        assert max(each.unfinished_count for each in PortConnections(port).open_ones()) < 1_300
        assert unblock() == b"block"
        wait_until(partial(answered, caller))


@CLEARTEXT
def test_new_connections_wait_while_the_loop_is_behind(transport: str) -> None:
    headers = header_block("localhost", "/t.T/M")
    calls = (frame(1, 4, stream, headers) + frame(3, 0, stream, b"\0\0\0\x08") for stream in range(1, 200, 2))
    begun = PREFACE + frame(4, 0, 0, b"") + b"".join(calls)
    with blocked(transport, 0) as (port, _, unblock), ExitStack() as stack:
        held: list[socket.socket] = []

        def is_held() -> bool:
            tried = stack.enter_context(socket.socket())
            tried.setblocking(False)
            tried.connect_ex(("127.0.0.1", port))
            if not select.select([], [tried], [], 0)[1]:
                held.append(tried)
                return True
            # No connection has more calls than it may have, and each is gone before anybody looks.
            tried.sendall(begun)
            tried.close()
            return False

        wait_until(is_held)
        assert unblock() == b"block"
        assert select.select([], held, [], WAIT_S)[1] == held
        assert held[0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def answered(caller: RawCaller) -> bool:
    stream = caller.begin()
    caller.http.send_data(stream, grpc_frame(b"abc"), end_stream=True)
    caller.flush()
    return caller.answer(stream).get("grpc-status") == "0"


@CLEARTEXT
def test_innocents_lose_nothing_by_a_flood_of_resets(transport: str) -> None:
    with running(transport, unary(echo)) as world, innocents(world.port), raw_caller(world.port) as caller:
        assert answered(caller)
        for _ in range(20):
            for _ in range(500):
                caller.http.reset_stream(caller.begin())
            caller.flush()
        wait_until(partial(answered, caller))


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S * 100)):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"expected within {WAIT_S} s")
