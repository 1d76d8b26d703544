"""Just enough HTTP/2 to load a gRPC server cheaply: one connection, unary calls of one method, bytes prepared once.

A general client spends more on a call than the servers that it is to load. This one writes the same request bytes again
and again under another stream number, its headers in one byte each once the server has them in its table, as other
clients do; of an answer it looks at nothing but its frames' headers and the length of its message. It keeps to flow
control and to the server's limits.
Sources: RFC 9113 (frames, streams, flow control), RFC 7541 (header literals), gRPC over HTTP/2 (message framing).
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_REFUSED_STREAM: Final = 7
"""Source: RFC 9113, 7."""

_CANCEL: Final = (8).to_bytes(4, "big")

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
_DEFAULT_TABLE: Final = 4_096
_TABLE_ENTRY: Final = 32
"""What an entry of the table counts beside its name and value. Source: RFC 7541, 4.1."""

_FIRST_PLACE: Final = 62
"""Of the newest entry of the table. Source: RFC 7541, 2.3.3."""

_EMPTY_TABLE: Final = b"\x20"
"""A table of no bytes, said at the begin of headers. Source: RFC 7541, 6.3."""

_FEWEST_READ_BYTES: Final = 1 << 14
_MOST_READ_BYTES: Final = 1 << 20


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


class _Stream:
    """A call on its way: most change nothing of this but the body, which is why none of it is set beforehand."""

    window_bytes = 0
    unsent = memoryview(b"")
    status: int | None = None
    body: bytes | bytearray = b""


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
        self._plain_headers = header_block(f"{host}:{port}", method, timeout_ms)
        first, again = indexed_header_blocks(f"{host}:{port}", method, timeout_ms)
        self._headers, self._next_headers = first, again
        self._reads_status = reads_status
        self._next_stream = 1
        self._streams: dict[int, _Stream] = {}
        self._waiting: deque[int] = deque()
        self._window_bytes = _DEFAULT_WINDOW
        self._initial_window_bytes = _DEFAULT_WINDOW
        self._max_frame_bytes = 16_384
        self._consumed_bytes = 0
        self._incoming = b""
        self._read_bytes = _FEWEST_READ_BYTES
        self.max_streams = _LARGEST_WINDOW
        self.has_settings = False
        window = _SETTING.pack(_SETTING_INITIAL_WINDOW, _LARGEST_WINDOW)
        if reads_status:
            window += _SETTING.pack(_SETTING_TABLE, 0)
        settings = frame(_SETTINGS, 0, 0, window) + _window_update(_LARGEST_WINDOW - _DEFAULT_WINDOW)
        self._outgoing: list[bytes | memoryview] = [PREFACE, settings]
        self._rest: bytes | memoryview = b""

    def fileno(self) -> int:
        """Gives the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    @property
    def wants_to_write(self) -> bool:
        """Tells whether bytes wait for the socket to take them."""
        return bool(self._outgoing or self._rest)

    def send(self, framed_message: bytes) -> int:
        """Starts a call; `flush` sends it.

        Args:
            framed_message: From `frame_message`.

        Returns:
            The call's stream number.
        """
        number = self._next_stream
        self._next_stream = number + 2
        headers, size = self._headers, len(framed_message)
        self._headers = self._next_headers
        stream = self._streams[number] = _Stream()
        head = _HEADER.pack(len(headers) >> 8, len(headers) & 0xFF, _HEADERS, _END_HEADERS, number)
        if 0 < size <= self._max_frame_bytes and size <= min(self._window_bytes, self._initial_window_bytes):
            self._window_bytes -= size
            data = _HEADER.pack(size >> 8, size & 0xFF, _DATA, _END_STREAM, number)
            self._outgoing += (head, headers, data, framed_message)
        else:
            self._outgoing += (head, headers)
            stream.window_bytes, stream.unsent = self._initial_window_bytes, memoryview(framed_message)
            self._send_data(number)
        return number

    def begin(self, part: bytes) -> int:
        """Starts a call whose body goes no further: a few first bytes of it, which must fit into the windows."""
        number = self.send(b"")
        self._window_bytes -= len(part)
        self._outgoing.append(frame(_DATA, 0, number, part))
        return number

    def reset(self, number: int) -> None:
        """Gives a call up, whatever its state; no answer comes of it."""
        self._streams.pop(number, None)
        self._outgoing.append(frame(_RST_STREAM, 0, number, _CANCEL))

    def flush(self) -> None:
        """Writes as much as the socket takes.

        Raises:
            ConnectionLostError: the server closed it.
        """
        try:
            while self._rest or self._outgoing:
                if not self._rest:
                    self._rest = b"".join(self._outgoing)
                    self._outgoing.clear()
                sent = self._socket.send(self._rest)
                self._rest = memoryview(self._rest)[sent:] if sent < len(self._rest) else b""
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLostError(f"connection: expected to write, got {error}") from None

    def receive(self) -> list[Answer]:
        """Reads what has arrived and gives the calls that are over.

        Raises:
            ConnectionLostError: the server closed it or is about to.
        """
        data = self._incoming + self._read()
        answers: list[Answer] = []
        offset = 0
        for kind, flags, number, start, end in frames(data):
            offset = end
            if kind == _DATA:
                self._take_data(flags, number, data[start:end])
            elif kind != _HEADERS:
                self._take_control(kind, flags, number, data[start:end], answers)
            elif self._reads_status and (stream := self._streams.get(number)) is not None:
                stream.status = plain_status(data[start:end])
            if flags & _END_STREAM and kind <= _HEADERS and (ended := self._streams.pop(number, None)) is not None:
                answers.append(Answer(number, unframe_message(ended.body), ended.status))
        self._incoming = data[offset:]
        return answers

    def _read(self) -> bytes:
        try:
            chunk = self._socket.recv(self._read_bytes)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise ConnectionLostError(f"connection: expected to read, got {error}") from None
        if not chunk:
            raise ConnectionLostError("connection: expected answers, got its end")
        if len(chunk) == self._read_bytes:
            # Room for a megabyte costs more than reading a short answer; it is made once answers are long.
            self._read_bytes = min(2 * self._read_bytes, _MOST_READ_BYTES)
        return chunk

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        self._consumed_bytes += len(payload)
        if self._consumed_bytes >= _REPLENISH_BYTES:
            self._outgoing.append(_window_update(self._consumed_bytes))
            self._consumed_bytes = 0
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        stream = self._streams.get(number)
        if stream is None:
            return
        if not stream.body:
            stream.body = payload
        elif isinstance(stream.body, bytearray):
            stream.body += payload
        else:
            stream.body = bytearray(stream.body + payload)

    def _take_control(self, kind: int, flags: int, number: int, payload: bytes, answers: list[Answer]) -> None:
        if kind == _RST_STREAM:
            if (stream := self._streams.pop(number, None)) is not None:
                answers.append(Answer(number, None, stream.status, int.from_bytes(payload, "big") == _REFUSED_STREAM))
        elif kind == _WINDOW_UPDATE:
            self._widen(number, _WORD.unpack(payload)[0])
        elif kind == _SETTINGS and not flags & _ACK:
            for setting, value in _SETTING.iter_unpack(payload):
                self._set(setting, value)
            self.has_settings = True
            self._outgoing.append(frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._outgoing.append(frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            raise ConnectionLostError(f"connection: expected answers, got GOAWAY: {payload[8:128]!r}")

    def _set(self, setting: int, value: int) -> None:
        if setting == _SETTING_MAX_STREAMS:
            self.max_streams = value
        elif setting == _SETTING_MAX_FRAME:
            self._max_frame_bytes = value
        elif setting == _SETTING_TABLE and value < _DEFAULT_TABLE:
            # It may be too small for our headers: the next ones empty it, and nothing is put there again.
            self._headers, self._next_headers = _EMPTY_TABLE + self._plain_headers, self._plain_headers
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
            self._outgoing.append(frame(_DATA, 0 if stream.unsent else _END_STREAM, number, piece))
            stream.window_bytes -= size
            self._window_bytes -= size


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


def unframe_message(body: bytes | bytearray) -> bytes | None:
    """Takes gRPC's prefix off a body; None unless it is exactly one message, not compressed."""
    size = _MESSAGE_PREFIX.size
    if len(body) < size or _MESSAGE_PREFIX.unpack_from(body) != (0, len(body) - size):
        return None
    return bytes(body[size:])


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


def indexed_header_blocks(authority: str, method: str, timeout_ms: int = 0) -> tuple[bytes, bytes]:
    """Writes the request headers of a gRPC call as the first call of a connection has them, and as all others do.

    The first puts them into the server's table, the others name their places there (RFC 7541, 6.1 and 6.2.1). Headers
    that the default table has no room for go as literals every time.
    """
    entries = [
        (b"\x44", ":path", method),
        (b"\x41", ":authority", authority),
        (b"\x5f", "content-type", "application/grpc"),
        (b"\x40" + _literal("te"), "te", "trailers"),
    ]
    if timeout_ms:
        entries.append((b"\x40" + _literal("grpc-timeout"), "grpc-timeout", f"{timeout_ms}m"))
    if sum(_TABLE_ENTRY + len(name) + len(value) for _, name, value in entries) > _DEFAULT_TABLE:
        plain = header_block(authority, method, timeout_ms)
        return plain, plain
    post_http = b"\x83\x86"
    first = b"".join(start + _literal(value) for start, _, value in entries)
    places = range(_FIRST_PLACE + len(entries) - 1, _FIRST_PLACE - 1, -1)
    return post_http + first, post_http + bytes(0x80 | place for place in places)


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
