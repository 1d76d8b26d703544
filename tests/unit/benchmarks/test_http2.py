"""Frames, flow control and failures of the load's HTTP/2 connection, against grpcio's own server."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.benchmarks.echoing import METHOD, echo, serving

from fitserve_benchmarks.http2 import (
    Answer,
    ConnectionLostError,
    Http2Connection,
    frame,
    frame_message,
    frames,
    header_block,
    indexed_header_blocks,
    plain_status,
    unframe_message,
)


@contextmanager
def connected(port: int) -> Iterator[Http2Connection]:
    connection = Http2Connection("127.0.0.1", port, METHOD)
    try:
        yield connection
    finally:
        connection.close()


def answers_to(connection: Http2Connection, count: int) -> list[Answer]:
    """Drives the connection until so many calls are over."""
    answers: list[Answer] = []
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while len(answers) < count:
            connection.flush()
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_to_write else 0)
            selector.modify(connection, events)
            selector.select(30)
            answers += connection.receive()
    return answers


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary()), max_size=5))
def test_frames_read_back_as_written(written: list[tuple[int, int, int, bytes]]) -> None:
    data = b"".join(frame(kind, flags, stream, payload) for kind, flags, stream, payload in written)
    read = [(kind, flags, stream, data[start:end]) for kind, flags, stream, start, end in frames(data)]
    assert read == written


@given(st.binary(max_size=40), st.integers(1, 49))
def test_a_frame_that_is_not_whole_yet_waits(payload: bytes, cut: int) -> None:
    data = frame(0, 0, 1, payload)
    assert list(frames(data[: -min(cut, len(data))])) == []


@given(st.binary())
def test_a_message_reads_back_as_framed(message: bytes) -> None:
    assert unframe_message(frame_message(message)) == message
    assert unframe_message(frame_message(message) + b"!") is None


@pytest.mark.parametrize("length", [1, 126, 127, 128, 254, 255, 256, 20_000])
def test_header_strings_of_any_length_have_their_length_before_them(length: int) -> None:
    block = header_block("a", "/" + "m" * (length - 1))
    prefix, shift, at, size = block[3], 0, 4, block[3]
    while prefix == 127:  # RFC 7541 section 5.1
        size += (block[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if not block[at - 1] & 128:
            break
    assert size == length
    assert block[at : at + length] == b"/" + b"m" * (length - 1)


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_531, 300_000, 3_000_000])
def test_messages_of_every_size_come_back(size: int) -> None:
    messages = [bytes([index]) * size for index in range(4)]
    with serving(echo) as port, connected(port) as connection:
        sent = {connection.send(frame_message(message)): message for message in messages}
        received = {answer.stream: answer.message for answer in answers_to(connection, 4)}
    assert received == sent


def test_many_calls_one_after_another_keep_the_windows_open() -> None:
    message = b"m" * 50_000
    with serving(echo) as port, connected(port) as connection:
        for _ in range(40):  # 2 MB each way: more than any initial window
            connection.send(frame_message(message))
            (answer,) = answers_to(connection, 1)
            assert answer.message == message


def test_a_message_waits_for_the_windows_that_the_server_opens() -> None:
    initial_window = frame(4, 0, 0, (4).to_bytes(2) + (10).to_bytes(4))
    with socket.create_server(("127.0.0.1", 0)) as listener, connected(listener.getsockname()[1]) as connection:
        peer, _ = listener.accept()
        peer.settimeout(30)
        with peer, selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)

            def hear(data: bytes) -> bytes:
                """Gives what the connection writes after it has read these bytes from the server."""
                peer.sendall(data)
                selector.select(30)
                connection.receive()
                connection.flush()
                return peer.recv(1 << 16)

            hear(initial_window)
            stream = connection.send(frame_message(b"m" * 25))
            connection.flush()
            assert data_frames(peer.recv(1 << 16)) == [(0, 10)]
            assert data_frames(hear(frame(8, 0, stream, (7).to_bytes(4)))) == [(0, 7)]
            assert data_frames(hear(frame(8, 0, stream, (100).to_bytes(4)))) == [(1, 13)]


@pytest.mark.parametrize(("code", "is_refused"), [(7, True), (8, False), (0, False)])
def test_a_stream_that_the_server_had_no_room_for_may_be_sent_again(code: int, is_refused: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, connected(listener.getsockname()[1]) as connection:
        peer, _ = listener.accept()
        with peer:
            stream = connection.send(frame_message(b"m"))
            connection.flush()
            peer.sendall(frame(3, 0, stream, code.to_bytes(4)))
            assert answers_to(connection, 1) == [Answer(stream, None, None, is_refused)]


def test_headers_go_into_the_servers_table_once() -> None:
    left_s: list[float] = []

    def note(request: bytes, context: grpc.ServicerContext) -> bytes:
        left_s.append(context.time_remaining())
        return request

    first, again = indexed_header_blocks("a:1", METHOD, 60_000)
    assert len(again) == 2 + 5 < len(first)
    with serving(note) as port:
        connection = Http2Connection("127.0.0.1", port, METHOD, timeout_ms=60_000)
        try:
            for _ in range(3):
                connection.send(frame_message(b"m"))
                (answer,) = answers_to(connection, 1)
                assert answer.message == b"m"
        finally:
            connection.close()
    assert all(0 < each_s <= 60 for each_s in left_s)


def test_headers_beyond_any_table_stay_literals() -> None:
    plain = header_block("a:1", "/" + "m" * 5_000)
    assert indexed_header_blocks("a:1", "/" + "m" * 5_000) == (plain, plain)


def test_a_server_with_a_smaller_table_gets_literals() -> None:
    small_table = frame(4, 0, 0, (1).to_bytes(2) + (100).to_bytes(4))
    with socket.create_server(("127.0.0.1", 0)) as listener, connected(listener.getsockname()[1]) as connection:
        port = listener.getsockname()[1]
        peer, _ = listener.accept()
        peer.settimeout(30)
        plain = header_block(f"127.0.0.1:{port}", METHOD)
        with peer:
            connection.send(frame_message(b"m"))
            connection.flush()
            assert header_blocks(peer.recv(1 << 16)) == [indexed_header_blocks(f"127.0.0.1:{port}", METHOD)[0]]
            peer.sendall(small_table)
            with selectors.DefaultSelector() as selector:
                selector.register(connection, selectors.EVENT_READ)
                selector.select(30)
            connection.receive()
            for _ in range(2):
                connection.send(frame_message(b"m"))
            connection.flush()
            # RFC 7541, 4.2: the change is said at the begin of the first headers after it.
            assert header_blocks(peer.recv(1 << 16)) == [b"\x20" + plain, plain]


def header_blocks(data: bytes) -> list[bytes]:
    """The payloads of the HEADERS frames; the connection's preface is passed over."""
    begin = data.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    return [begin[start:end] for kind, _, _, start, end in frames(begin) if kind == 1]


def data_frames(data: bytes) -> list[tuple[int, int]]:
    """Flags and length of the DATA frames."""
    return [(flags, end - start) for kind, flags, _, start, end in frames(data) if kind == 0]


def test_a_failed_call_has_no_message_and_the_next_one_is_answered() -> None:
    def picky(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected good, got bad")
        return request

    with serving(picky) as port, connected(port) as connection:
        bad, good = connection.send(frame_message(b"bad")), connection.send(frame_message(b"good"))
        assert {a.stream: a.message for a in answers_to(connection, 2)} == {bad: None, good: b"good"}


def test_the_servers_limit_of_calls_is_known() -> None:
    options = {"grpc.max_concurrent_streams": 7}
    with serving(echo, **options) as port, connected(port) as connection:
        connection.send(frame_message(b""))
        answers_to(connection, 1)
        assert connection.has_settings
        assert connection.max_streams == 7


def test_a_server_that_says_goodbye_is_an_error() -> None:
    goaway = frame(7, 0, 0, b"\0\0\0\0" + b"\0\0\0\2" + b"too many pings")
    with socket.create_server(("127.0.0.1", 0)) as listener, connected(listener.getsockname()[1]) as connection:
        accepted, _ = listener.accept()
        accepted.sendall(goaway)
        with accepted, pytest.raises(ConnectionLostError, match="got GOAWAY: b'too many pings'"):
            answers_to(connection, 1)


def test_nobody_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        Http2Connection("127.0.0.1", port, METHOD)


def test_an_ended_connection_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, connected(listener.getsockname()[1]) as connection:
        accepted, _ = listener.accept()
        accepted.close()
        with pytest.raises(ConnectionLostError, match="connection: expected"):
            answers_to(connection, 1)


def test_the_status_and_the_deadline_of_calls() -> None:
    left_s: list[float] = []

    def behave(request: bytes, context: grpc.ServicerContext) -> bytes:
        left_s.append(context.time_remaining())
        if request == b"no":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return request

    with serving(behave) as port:
        connection = Http2Connection("127.0.0.1", port, METHOD, timeout_ms=60_000, reads_status=True)
        try:
            streams = [connection.send(frame_message(message)) for message in (b"yes", b"no")]
            answers = {answer.stream: answer for answer in answers_to(connection, 2)}
        finally:
            connection.close()

    assert [(answers[stream].message, answers[stream].status) for stream in streams] == [(b"yes", 0), (None, 8)]
    assert all(0 < each_s <= 60 for each_s in left_s)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"\x20\x00\x0bgrpc-status\x018", 8),
        (b"\x00\x0bgrpc-status\x0214\x00\x04more\x011", 14),
        (b"\x88", None),
        (b"\x00\x0bgrpc-status", None),
        (b"\x00\x0bgrpc-status\x01x", None),
    ],
)
def test_a_status_is_read_where_it_stands_plainly(headers: bytes, status: int | None) -> None:
    assert plain_status(headers) == status
