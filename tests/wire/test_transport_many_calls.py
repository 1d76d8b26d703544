"""Many calls at once by ordinary clients without retries: none is lost but those that were cancelled."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.wire.conforming import CONFORMING, TRANSPORTS, channel, echo, running, unary
from tests.wire.raw_callers import WAIT_S, RawCaller, innocents, raw_caller
from tests.wire.test_transport_hostile import grpc_frame

from fitserve_service import transport_fast, transport_stock
from fitserve_service.calls import MethodTable, UnaryCall
from fitserve_service.connections import PortConnections
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
def test_the_core_s_own_protection_loses_calls(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where this passes no more, the protection may come back."""

    def protected(options: TransportOptions) -> list[tuple[str, int]]:
        found = dict(channel_options(options)) | {"grpc.http.overload_protection": 1}
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


@CLEARTEXT
def test_a_flood_of_resets_is_held_back_while_the_loop_is_behind(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_busy, go = threading.Event(), threading.Event()

    def block(call: UnaryCall, message: bytes) -> None:
        is_busy.set()
        go.wait(WAIT_S)
        call.reply(message)

    table = MethodTable({"/t.T/M": echo, "/t.T/Block": block}, {})
    with running(transport, table) as world, channel(world.port) as opened, raw_caller(world.port) as caller:
        assert answered(caller)  # Before that, the server takes no more calls than may be open.
        blocked = opened.unary_unary("/t.T/Block").future(b"block", timeout=WAIT_S)
        assert is_busy.wait(WAIT_S)
        for _ in range(100):
            for _ in range(100):
                caller.http.reset_stream(caller.begin())
            caller.flush()
            if "held back" in caplog.text:
                break
        wait_until(lambda: "held back" in caplog.text)
        go.set()
        # Nobody else noticed, the flood is over, and its connection serves again.
        assert blocked.result() == b"block"
        assert answered(caller)
        wait_until(lambda: max(each.unfinished_count for each in PortConnections(world.port).open_ones()) == 0)


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
        assert answered(caller)


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S * 100)):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"expected within {WAIT_S} s")
