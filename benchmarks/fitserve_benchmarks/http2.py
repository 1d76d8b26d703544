"""Just enough HTTP/2 to load a gRPC server cheaply: one connection, unary calls of one method, bytes prepared once.

A general client spends more on a call than the servers that it is to load. This one writes the same request bytes again
and again under another stream number, and looks at nothing of an answer but its frames' headers and the length of its
message. It keeps to flow control and to the server's limits.
Sources: RFC 9113 (frames, streams, flow control), RFC 7541 (header literals), gRPC over HTTP/2 (message framing).
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_REFUSED_STREAM: Final = 7
"""Source: RFC 9113, 7."""

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_SETTING_TABLE, _SETTING_MAX_STREAMS, _SETTING_INITIAL_WINDOW, _SETTING_MAX_FRAME = 1, 3, 4, 5

_HEADER: Final = struct.Struct(">HBBBL")
_SETTING: Final = struct.Struct(">HL")
_WORD: Final = struct.Struct(">L")
_MESSAGE_PREFIX: Final = struct.Struct(">BL")

_LARGEST_WINDOW: Final = 2**31 - 1
_DEFAULT_WINDOW: Final = 65_535
_REPLENISH_BYTES: Final = 2**30
_READ_BYTES: Final = 1 << 18


class ConnectionLostError(ConnectionError):
    """The server ended the connection; the message says how."""


@dataclass(slots=True)
class Answer:
    """What came back for one request.

    Args:
        stream: Stream number that `send` gave.
        message: Bytes of the gRPC message; None where the call failed (no message, or a reset stream).
        status: gRPC status, on a connection that reads it; None where none came.
        is_refused: The server had no room for another stream and did nothing with it, so that it may be sent again, as
            gRPC's own clients do. Source: RFC 9113, 8.7.
    """

    stream: int
    message: bytes | None
    status: int | None = None
    is_refused: bool = False


@dataclass(slots=True)
class _Stream:
    window_bytes: int
    unsent: memoryview
    status: int | None = None
    received: list[memoryview] = field(default_factory=list)


class Http2Connection:
    """One plaintext connection that calls one unary gRPC method. Not thread-safe; owns its socket.

    Args:
        host: Name or address.
        port: TCP port.
        method: `/package.Service/Method`.
        timeout_ms: Deadline of every call, sent along; 0: none.
        reads_status: Ask for headers that no table shortens, and read each call's status out of them.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, host: str, port: int, method: str, *, timeout_ms: int = 0, reads_status: bool = False) -> None:
        self._socket = socket.create_connection((host, port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._headers = header_block(f"{host}:{port}", method, timeout_ms)
        self._reads_status = reads_status
        self._next_stream = 1
        self._streams: dict[int, _Stream] = {}
        self._waiting: deque[int] = deque()
        self._window_bytes = _DEFAULT_WINDOW
        self._initial_window_bytes = _DEFAULT_WINDOW
        self._max_frame_bytes = 16_384
        self._consumed_bytes = 0
        self._incoming = b""
        self.max_streams = _LARGEST_WINDOW
        self.has_settings = False
        window = _SETTING.pack(_SETTING_INITIAL_WINDOW, _LARGEST_WINDOW)
        if reads_status:
            window += _SETTING.pack(_SETTING_TABLE, 0)
        settings = frame(_SETTINGS, 0, 0, window) + _window_update(_LARGEST_WINDOW - _DEFAULT_WINDOW)
        self._outgoing = bytearray(PREFACE + settings)

    def fileno(self) -> int:
        """Gives the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    @property
    def wants_to_write(self) -> bool:
        """Tells whether bytes wait for the socket to take them."""
        return bool(self._outgoing)

    def send(self, framed_message: bytes) -> int:
        """Starts a call; `flush` sends it.

        Args:
            framed_message: From `frame_message`.

        Returns:
            The call's stream number.
        """
        number = self._next_stream
        self._next_stream += 2
        self._streams[number] = _Stream(self._initial_window_bytes, memoryview(framed_message))
        self._outgoing += frame(_HEADERS, _END_HEADERS, number, self._headers)
        self._send_data(number)
        return number

    def flush(self) -> None:
        """Writes as much as the socket takes.

        Raises:
            ConnectionLostError: the server closed it.
        """
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLostError(f"connection: expected to write, got {error}") from None

    def receive(self) -> list[Answer]:
        """Reads what has arrived and gives the calls that are over.

        Raises:
            ConnectionLostError: the server closed it or is about to.
        """
        try:
            chunk = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionLostError(f"connection: expected to read, got {error}") from None
        if not chunk:
            raise ConnectionLostError("connection: expected answers, got its end")
        data = self._incoming + chunk
        answers, offset = [], 0
        for kind, flags, number, start, end in frames(data):
            offset = end
            if (answer := self._take(kind, flags, number, memoryview(data)[start:end])) is not None:
                answers.append(answer)
        self._incoming = data[offset:]
        return answers

    def _take(self, kind: int, flags: int, number: int, payload: memoryview) -> Answer | None:
        if kind == _DATA:
            self._take_data(flags, number, payload)
        elif kind == _RST_STREAM:
            return self._reset(number, bytes(payload))
        elif kind == _HEADERS:
            if self._reads_status and (stream := self._streams.get(number)) is not None:
                stream.status = plain_status(bytes(payload))
        else:
            self._take_control(kind, flags, number, payload)
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            return self._end(number)
        return None

    def _take_data(self, flags: int, number: int, payload: memoryview) -> None:
        self._consumed_bytes += len(payload)
        if self._consumed_bytes >= _REPLENISH_BYTES:
            self._outgoing += _window_update(self._consumed_bytes)
            self._consumed_bytes = 0
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if (stream := self._streams.get(number)) is not None:
            stream.received.append(payload)

    def _take_control(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if kind == _WINDOW_UPDATE:
            self._widen(number, _WORD.unpack(payload)[0])
        elif kind == _SETTINGS and not flags & _ACK:
            for setting, value in _SETTING.iter_unpack(payload):
                self._set(setting, value)
            self.has_settings = True
            self._outgoing += frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._outgoing += frame(_PING, _ACK, 0, bytes(payload))
        elif kind == _GOAWAY:
            raise ConnectionLostError(f"connection: expected answers, got GOAWAY: {bytes(payload[8:])[:120]!r}")

    def _set(self, setting: int, value: int) -> None:
        if setting == _SETTING_MAX_STREAMS:
            self.max_streams = value
        elif setting == _SETTING_MAX_FRAME:
            self._max_frame_bytes = value
        elif setting == _SETTING_INITIAL_WINDOW:
            for stream in self._streams.values():
                stream.window_bytes += value - self._initial_window_bytes
            self._initial_window_bytes = value
            self._send_waiting()

    def _widen(self, number: int, increment: int) -> None:
        if number == 0:
            self._window_bytes += increment
            self._send_waiting()
        elif (stream := self._streams.get(number)) is not None:
            stream.window_bytes += increment
            self._send_waiting()

    def _send_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            self._send_data(self._waiting.popleft())

    def _send_data(self, number: int) -> None:
        """Sends what the two windows allow; a stream with bytes left waits for a wider one."""
        stream = self._streams.get(number)
        if stream is None:
            return
        while stream.unsent:
            size = min(len(stream.unsent), self._max_frame_bytes, stream.window_bytes, self._window_bytes)
            if size <= 0:
                self._waiting.append(number)
                return
            piece, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            self._outgoing += frame(_DATA, 0 if stream.unsent else _END_STREAM, number, piece)
            stream.window_bytes -= size
            self._window_bytes -= size

    def _end(self, number: int) -> Answer | None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return None
        return Answer(number, unframe_message(b"".join(stream.received)), stream.status)

    def _reset(self, number: int, payload: bytes) -> Answer | None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return None
        return Answer(number, None, stream.status, int.from_bytes(payload, "big") == _REFUSED_STREAM)


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    """Makes one frame."""
    size = len(payload)
    return b"".join((_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream), payload))


def frames(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields kind, flags, stream, start and end of the payload for each whole frame at the front of the data."""
    offset, end_of_data = 0, len(data)
    while offset + 9 <= end_of_data:
        high, low, kind, flags, stream = _HEADER.unpack_from(data, offset)
        start = offset + 9
        end = start + (high << 8 | low)
        if end > end_of_data:
            return
        yield kind, flags, stream & _LARGEST_WINDOW, start, end
        offset = end


def frame_message(message: bytes) -> bytes:
    """Puts gRPC's 5-byte prefix before a message: not compressed, its length."""
    return _MESSAGE_PREFIX.pack(0, len(message)) + message


def unframe_message(body: bytes) -> bytes | None:
    """Takes gRPC's prefix off a body; None unless it is exactly one message, not compressed."""
    size = _MESSAGE_PREFIX.size
    if len(body) < size or _MESSAGE_PREFIX.unpack_from(body) != (0, len(body) - size):
        return None
    return body[size:]


def plain_status(headers: bytes) -> int | None:
    """Finds the gRPC status in headers that no table and no Huffman code has shortened; None where there is none."""
    _, name, rest = headers.partition(b"\x0bgrpc-status")
    digits = rest[1 : 1 + rest[0]] if name and rest else b""
    return int(digits) if digits.isdigit() else None


def header_block(authority: str, method: str, timeout_ms: int = 0) -> bytes:
    """Writes the request headers of a gRPC call, as literals that no table remembers: the same for every call."""
    post, http = b"\x83", b"\x86"
    return b"".join(
        (
            post,
            http,
            b"\x04" + _literal(method),
            b"\x01" + _literal(authority),
            b"\x0f\x10" + _literal("application/grpc"),
            b"\x00" + _literal("te") + _literal("trailers"),
            b"\x00" + _literal("grpc-timeout") + _literal(f"{timeout_ms}m") if timeout_ms else b"",
        )
    )


def _literal(text: str) -> bytes:
    """A string without Huffman coding; its length as an integer with a 7-bit prefix."""
    content = text.encode("ascii")
    length = len(content)
    if length < 127:
        return bytes((length,)) + content
    rest, prefix = length - 127, bytearray((127,))
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    return bytes(prefix) + bytes((rest,)) + content


def _window_update(increment: int) -> bytes:
    return frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(increment))
