"""The worlds in which transports are held against one and the same suite."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from fitserve_service.calls import MethodTable, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from fitserve_service.status import DETAILS_KEY
from fitserve_service.transport import Transport, TransportOptions
from fitserve_service.transport_fast import FastTransport
from fitserve_service.transport_stock import StockTransport

TRANSPORTS: dict[str, Callable[[TransportOptions], Transport]] = {
    "fast": FastTransport,
    "stock": StockTransport,
}
"""Every transport, by name; each passes every test of test_transport_conformance, _streams and _lifetime."""

WAIT_S = 20.0
"""Longer than any of this takes; what runs into it has failed."""


class Running:
    """A transport that serves on a thread of its own."""

    def __init__(self, transport: Transport, table: MethodTable) -> None:
        self.transport = transport
        self.port = 0
        self.error: BaseException | None = None
        self._started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(table,))

    def start(self) -> None:
        self.thread.start()
        self._started.wait()
        if self.error is not None:
            self.thread.join()
            raise self.error

    def stop(self, grace_s: float) -> None:
        self.transport.post(lambda: self.transport.stop(grace_s))

    def _run(self, table: MethodTable) -> None:
        try:
            self.transport.run(table, self._on_start)
        except BaseException as error:  # noqa: BLE001, RUF100 - handed to the test's thread
            self.error = error
            self._started.set()

    def _on_start(self, port: int) -> None:
        self.port = port
        self._started.set()


@contextmanager
def running(name: str, table: MethodTable, **options: Any) -> Iterator[Running]:
    """Serves a table on a free port until the block ends."""
    world = Running(TRANSPORTS[name](TransportOptions(port=0, **options)), table)
    world.start()
    try:
        yield world
    finally:
        world.stop(0)
        world.thread.join()
    assert world.error is None


@contextmanager
def channel(port: int) -> Iterator[Any]:
    """Connects to a port of this machine, with a connection of its own.

    Typed as Any: grpc-stubs knows no calls of plain bytes, and no iterators as streams are.
    """
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as opened:
        yield opened


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
