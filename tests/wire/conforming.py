"""The worlds in which transports are held against one and the same suite."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from fitserve_service.calls import MethodTable
from fitserve_service.transport import Transport, TransportOptions
from fitserve_service.transport_fast import FastTransport
from fitserve_service.transport_stock import StockTransport

TRANSPORTS: dict[str, Callable[[TransportOptions], Transport]] = {
    "fast": FastTransport,
    "stock": StockTransport,
}
"""Every transport, by name; each passes every test of test_transport_conformance."""


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
