"""Callers that speak HTTP/2 frame by frame, to do what no gRPC client does; and innocents who must not notice."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from h2.connection import H2Connection
from h2.events import Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from tests.wire.conforming import channel

WAIT_S: Final = 20.0

HEADERS: Final = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/t.T/M",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}
"""What a call of `/t.T/M` begins with."""

_OVER: Final = (TrailersReceived, StreamEnded, StreamReset)


class RawCaller:
    """One connection. Its frames go out with `flush`, as many at once as there are."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.http = H2Connection()
        self._found: dict[int, dict[str, str]] = defaultdict(dict)
        self._over: set[int] = set()
        self.http.initiate_connection()
        self.flush()

    def begin(self, **changes: str | None) -> int:
        """Begins a call and gives its stream; the headers named in `changes` (`_` for `-`) are changed or left out."""
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        headers = HEADERS | {name if name in HEADERS else f":{name}": value for name, value in named.items()}
        stream: int = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, [(name, value) for name, value in headers.items() if value is not None])
        return stream

    def flush(self) -> None:
        """Sends what is waiting; nothing if the server has hung up."""
        try:
            self.socket.sendall(self.http.data_to_send())
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self, stream: int) -> dict[str, str]:
        """Waits until a stream is over and gives the headers and trailers that came; `reset` where it was reset."""
        while stream not in self._over and (data := self._receive()):
            for event in self.http.receive_data(data):
                number = getattr(event, "stream_id", None) or 0
                self._found[number] |= _headers(event)
                if isinstance(event, _OVER):
                    self._over.add(number)
            self.flush()
        return self._found[stream]

    def close(self) -> None:
        self.socket.close()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65_536)
        except ConnectionResetError:
            return b""


@contextmanager
def raw_caller(port: int) -> Iterator[RawCaller]:
    """Connects until the block ends."""
    caller = RawCaller(port)
    try:
        yield caller
    finally:
        caller.close()


@contextmanager
def innocents(port: int, count: int = 2) -> Iterator[None]:
    """Calls all the while; none of the calls may fail, and each innocent gets answers before, during and after."""
    done = threading.Event()
    failures: list[BaseException] = []
    threads = [threading.Thread(target=_call, args=(port, done, failures)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def _call(port: int, done: threading.Event, failures: list[BaseException]) -> None:
    try:
        with channel(port) as opened:
            method = opened.unary_unary("/t.T/M")
            while not done.is_set():
                assert method(b"innocent", timeout=WAIT_S) == b"innocent"
            assert method(b"after", timeout=WAIT_S) == b"after"
    except BaseException as error:
        failures.append(error)


def _headers(event: Event) -> dict[str, str]:
    if isinstance(event, StreamReset):
        return {"reset": str(event.error_code)}
    pairs: Any = event.headers if isinstance(event, (ResponseReceived, TrailersReceived)) else ()
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
