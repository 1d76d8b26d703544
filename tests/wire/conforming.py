"""The worlds in which transports are held against one and the same suite."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from tests import pki

from fitserve_service.access.tls_files import TlsFiles
from fitserve_service.calls import MethodTable, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from fitserve_service.status import DETAILS_KEY
from fitserve_service.transport import Transport, TransportOptions
from fitserve_service.transport_fast import FastTransport
from fitserve_service.transport_stock import StockTransport

TRANSPORTS: dict[str, Callable[[TransportOptions], Transport]] = {
    "fast": FastTransport,
    "stock": StockTransport,
}
"""Every transport, by name."""


def _secured(make: Callable[[TransportOptions], Transport]) -> Callable[[TransportOptions], Transport]:
    return lambda options: make(replace(options, tls=_pki()[0]))


SECURED = {f"{name} over TLS": _secured(make) for name, make in TRANSPORTS.items()}

CONFORMING = [
    *sorted(TRANSPORTS),
    *(pytest.param(name, marks=pytest.mark.needs_program("openssl")) for name in sorted(SECURED)),
]
"""Each of these passes every test of test_transport_conformance, _streams and _lifetime."""

WAIT_S = 20.0
"""Longer than any of this takes; what runs into it has failed."""


_secured_ports: set[int] = set()
"""Ports on which a server of `running` speaks TLS."""


@functools.cache
def _pki() -> tuple[TlsFiles, pki.Pair]:
    """One certificate for all, which nobody changes."""
    folder = Path(tempfile.mkdtemp(prefix="fitserve-pki-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pki.server_files(folder)


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


def make_transport(name: str, options: TransportOptions) -> Transport:
    """Makes a transport of `TRANSPORTS` or `SECURED`."""
    return {**TRANSPORTS, **SECURED}[name](options)


@contextmanager
def running(name: str, table: MethodTable, **options: Any) -> Iterator[Running]:
    """Serves a table on a free port until the block ends."""
    world = Running(make_transport(name, TransportOptions(port=0, **options)), table)
    world.start()
    if name in SECURED:
        _secured_ports.add(world.port)
    else:
        _secured_ports.discard(world.port)
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
    target = f"127.0.0.1:{port}"
    if port in _secured_ports:
        opened = grpc.secure_channel(target, pki.client_credentials(_pki()[1]), options=options)
    else:
        opened = grpc.insecure_channel(target, options=options)
    with opened:
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
