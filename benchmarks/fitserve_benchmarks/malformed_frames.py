"""HTTP/2 and gRPC as no client speaks them: what a connection says after its handshake, made by seeded chance.

Sources: RFC 9113 (what each frame must be), RFC 7541 (header blocks), gRPC over HTTP/2 (message prefix).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from fitserve_benchmarks.http2 import PREFACE, frame, header_block

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS = 0, 1, 2, 3, 4
_PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 5, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8

_HELLO: Final = PREFACE + frame(_SETTINGS, 0, 0, b"")
_AUTHORITY: Final = "127.0.0.1"
PATH_NO_TEXT: Final = "path that is no text"

_HUGE: Final = 2**31 - 1


def _begun(method: str, stream: int = 1) -> bytes:
    return frame(_HEADERS, _END_HEADERS, stream, header_block(_AUTHORITY, method))


def no_preface(random: Random, _: str) -> bytes:
    """Bytes that are no HTTP/2 at all."""
    return random.choice((random.randbytes(random.randint(1, 200)), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE[:9]))


def any_frame(random: Random, method: str) -> bytes:
    """A frame of any kind, with any flags, on any stream, with anything in it; perhaps within a call."""
    payload = random.randbytes(random.choice((0, 1, 4, 5, 6, 8, 9, 64)))
    kind, flags = random.randrange(12), random.randrange(256)
    stream = random.choice((0, 1, 2, 3, 5, _HUGE))
    return _HELLO + (_begun(method) if random.random() < 0.5 else b"") + frame(kind, flags, stream, payload)


def cut_frame(random: Random, method: str) -> bytes:
    """A frame that says more bytes than ever come."""
    whole = frame(random.choice((_DATA, _HEADERS, _SETTINGS, _PING)), 0, 1, bytes(random.choice((8, 100, 16_000))))
    return _HELLO + _begun(method) + whole[: random.randint(1, len(whole) - 1)]


def too_large_frame(random: Random, method: str) -> bytes:
    """A frame beyond the largest that was agreed on."""
    length = random.choice((16_385, 1 << 20, (1 << 24) - 1)).to_bytes(3, "big")
    return _HELLO + _begun(method) + length + bytes((random.choice((_DATA, _HEADERS, _PING)), 0)) + bytes((0, 0, 0, 1))


def wrong_length(random: Random, _: str) -> bytes:
    """A frame whose kind has a length, with another."""
    kind, length = random.choice(((_SETTINGS, 6), (_PING, 8), (_WINDOW_UPDATE, 4), (_RST_STREAM, 4), (_PRIORITY, 5)))
    other = random.choice([size for size in range(1, 12) if size % length])
    return _HELLO + frame(kind, 0, 0 if kind in (_SETTINGS, _PING) else 1, random.randbytes(other))


def wrong_stream(random: Random, method: str) -> bytes:
    """A frame on a stream where its kind may not be."""
    choices = (
        frame(_DATA, _END_STREAM, 0, b"\0\0\0\0\0"),
        frame(_DATA, 0, 7, b"\0\0\0\0\0"),
        frame(_SETTINGS, 0, 1, b""),
        frame(_PING, 0, 1, bytes(8)),
        frame(_RST_STREAM, 0, 9, bytes(4)),
        frame(_CONTINUATION, _END_HEADERS, 1, b""),
        frame(_PUSH_PROMISE, _END_HEADERS, 1, (2).to_bytes(4, "big")),
        frame(_GOAWAY, 0, 1, bytes(8)),
        _begun(method, 2),
        _begun(method, 5) + _begun(method, 3),
    )
    return _HELLO + random.choice(choices)


def bad_headers(random: Random, method: str) -> bytes:
    """A header block that no table and no code explains, or that a request may not have."""
    block = header_block(_AUTHORITY, method)
    at = random.randrange(len(block))
    changed = block[:at] + bytes((block[at] ^ (1 << random.randrange(7)),)) + block[at + 1 :]
    nonsense = (b"", b"\xff" * 20, b"\xbf\xff\xff\xff\xff\x0f", b"\x40\x7f\xff", random.randbytes(40))
    flags = random.choice((_END_HEADERS, _END_HEADERS | _PADDED, _END_HEADERS | _END_STREAM))
    return _HELLO + frame(_HEADERS, flags, 1, random.choice((*nonsense, changed, block[:at])))


def path_no_text(random: Random, method: str) -> bytes:
    """A path whose bytes are no UTF-8."""
    path = method.encode()
    at = random.randrange(1, len(path))
    block = header_block(_AUTHORITY, method).replace(path, path[:at] + bytes((path[at] | 0x80,)) + path[at + 1 :])
    return _HELLO + frame(_HEADERS, _END_HEADERS, 1, block) + frame(_DATA, _END_STREAM, 1, bytes(5))


def bad_windows(random: Random, method: str) -> bytes:
    """A window that grows by nothing, or beyond what a window may be."""
    increment = random.choice((0, _HUGE)).to_bytes(4, "big")
    settings = (4).to_bytes(2, "big") + random.choice((_HUGE + 1, 2**32 - 1)).to_bytes(4, "big")
    choices = (frame(_WINDOW_UPDATE, 0, random.choice((0, 1)), increment) * 2, frame(_SETTINGS, 0, 0, settings))
    return _HELLO + _begun(method) + random.choice(choices)


def bad_prefix(random: Random, method: str) -> bytes:
    """A message that is compressed by nothing, of 2 GB, cut off, doubled, or none."""
    bodies = (
        b"\0" + (_HUGE).to_bytes(4, "big") + bytes(10),
        b"\0\xff\xff\xff\xff",
        b"\1\0\0\0\4abcd",
        b"\7\0\0\0\4abcd",
        b"\0\0\0\0\x40" + bytes(10),
        b"\0\0\0\0\0" * 2,
        b"\0\0",
        b"",
    )
    return _HELLO + _begun(method) + frame(_DATA, _END_STREAM, 1, random.choice(bodies))


def bad_request(random: Random, method: str) -> bytes:
    """A request that is not gRPC: another content type, another verb, no path, a method that there is none of."""
    block = header_block(_AUTHORITY, random.choice((method, "", "/", "/none.Such/Method", "/" + "x" * 9_000)))
    others = (
        block,
        block.replace(b"application/grpc", b"application/text"),
        block.replace(b"\x83", b"\x82", 1),
        block.replace(b"trailers", b"nonsense"),
    )
    return _HELLO + frame(_HEADERS, _END_HEADERS, 1, random.choice(others)) + frame(_DATA, _END_STREAM, 1, bytes(5))


MALFORMED: Final[Mapping[str, Callable[[Random, str], bytes]]] = {
    "no preface": no_preface,
    "any frame": any_frame,
    "cut frame": cut_frame,
    "too large frame": too_large_frame,
    "wrong length": wrong_length,
    "wrong stream": wrong_stream,
    "bad headers": bad_headers,
    PATH_NO_TEXT: path_no_text,
    "bad windows": bad_windows,
    "bad prefix": bad_prefix,
    "bad request": bad_request,
}
"""Kind to what makes all that a connection says, of chance and of a method that the server has."""

PING: Final = frame(_PING, 0, 0, b"is there")
PONG: Final = frame(_PING, _ACK, 0, b"is there")
"""Whether a connection lives on after what it said."""
