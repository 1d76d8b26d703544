"""Finds where fields lie in a serialized protobuf message, without reading what they hold.

Source of the wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

Span: TypeAlias = tuple[int, int]
Path: TypeAlias = tuple[int, ...]
"""Field numbers from the message down to the contents: (2, 4) is field 4 of each field 2."""

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5


def skeleton(message: bytes, spans: Sequence[Span], *, has_empty: bool = False) -> list[tuple[int, bytes]]:
    """Gives what lies between the spans: offset and bytes; pieces without bytes too where `has_empty` says so."""
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(message)]
    pieces = [(start, message[start:end]) for start, end in zip(starts, ends, strict=True)]
    return [(start, piece) for start, piece in pieces if piece or has_empty]


def content_spans(message: bytes, path: Path, start: int = 0, end: int | None = None) -> list[Span] | None:
    """Finds the payloads of the bytes fields at a path, in their order.

    Args:
        message: A serialized message.
        path: Field numbers down to the field.
        start: Where to begin.
        end: Where to end; None: with the message.

    Returns:
        Begin and end of each; None where the bytes are no message, or one with groups.
    """
    end = len(message) if end is None else end
    spans: list[Span] = []
    while start < end:
        tag, start = _varint(message, start, end)
        kind, number = tag & 7, tag >> 3
        if start < 0 or not number:
            return None
        payload = start
        if kind == _VARINT:
            _, start = _varint(message, start, end)
        elif kind == _FIXED64:
            start += 8
        elif kind == _FIXED32:
            start += 4
        elif kind == _LENGTH:
            length, payload = _varint(message, start, end)
            start = payload + length if payload >= 0 else -1
        else:
            return None
        if not 0 <= start <= end:
            return None
        if kind == _LENGTH and number == path[0]:
            found = [(payload, start)] if len(path) == 1 else content_spans(message, path[1:], payload, start)
            if found is None:
                return None
            spans += found
    return spans


def _varint(message: bytes, start: int, end: int) -> tuple[int, int]:
    """Reads a number; the place behind it is -1 where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = message[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    return 0, -1
