"""Lifts large contents out of a message before it is parsed, so that the parser does not copy them.

What a field means stays with the parser: where it finds a stand-in, the contents are what the stand-in stands for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, TypeAlias

from fitserve_service.rpc.wire_scan import Layout, MalformedError, read_varint

LARGE_BYTES: Final = 1 << 20
"""A smaller message is parsed as it is."""

_LEAST_BYTES: Final = 1 << 12
"""Contents that are smaller are left in place."""

_ALIGNMENT: Final = 8
"""Of the widest datatype; numbers are read in place where they begin at a multiple of it."""

_LENGTH: Final = 2
_VARINT: Final = 0
_WIDTHS: Final = {1: 8, 5: 4}

_MARK: Final = os.urandom(12)
_INDEX_BYTES: Final = 4
_STAND_IN_BYTES: Final = len(_MARK) + _INDEX_BYTES
"""Short enough for a length of one byte."""

Tree: TypeAlias = "Mapping[int, Tree | None]"
"""Numbers of the fields to go into; None: its payload is contents."""


class Contents:
    """The contents that were lifted out of one message, by their stand-ins."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._spans: list[tuple[int, int]] = []

    def of(self, content: bytes) -> bytes | memoryview:
        """Returns what a parser's contents are: themselves, or what they stand for.

        Returns:
            A view of the message where that is aligned, else a copy, which is the caller's alone.
        """
        if not self._spans or not _is_stand_in(content, 0, len(content)):
            return content
        index = int.from_bytes(content[-_INDEX_BYTES:], "little")
        start, end = self._spans[index]
        # The bytes of a Python object begin at a multiple of 16.
        return self._message[start:end] if start % _ALIGNMENT else memoryview(self._message)[start:end]

    def put(self, start: int, end: int) -> bytes:
        """Takes the place of contents in the message and returns their stand-in."""
        self._spans.append((start, end))
        return _MARK + (len(self._spans) - 1).to_bytes(_INDEX_BYTES, "little")


def lift(message: bytes, layout: Layout) -> tuple[bytes, Contents]:
    """Takes the large contents out of a message.

    Args:
        message: Counted: its fields are whole, and none is a group.
        layout: Of its kind.

    Returns:
        The message with stand-ins, and the contents.
    """
    contents = Contents(message)
    if len(message) < LARGE_BYTES:
        return message, contents
    tree: dict[int, Tree | None] = {layout.raw: None} if layout.raw else {}
    if not layout.is_typed:
        tree |= {number: {layout.contents: None} for number in layout.tensors}
    return b"".join(_without(message, 0, len(message), tree, contents)), contents


def _without(message: bytes, start: int, end: int, tree: Tree, contents: Contents) -> list[bytes]:
    """Copies the fields of a part of a message but for the large contents in it."""
    pieces: list[bytes] = []
    # From where on nothing is copied yet.
    kept = start
    while start < end:
        begin = start
        tag, start = read_varint(message, start)
        payload, start = _payload(message, tag & 7, start)
        number = tag >> 3
        if tag & 7 != _LENGTH or number not in tree:
            continue
        below = tree[number]
        is_small = start - payload < _LEAST_BYTES
        if below is None and is_small and not _is_stand_in(message, payload, start):
            continue
        inner = [contents.put(payload, start)] if below is None else _without(message, payload, start, below, contents)
        pieces += (message[kept:begin], _written(tag), _written(sum(map(len, inner))), *inner)
        kept = start
    if start > end:
        raise MalformedError
    pieces.append(message[kept:end])
    return pieces


def _is_stand_in(message: bytes, start: int, end: int) -> bool:
    """Tells what looks like one; contents that do are lifted out as well, so that what is left are stand-ins."""
    return end - start == _STAND_IN_BYTES and message.startswith(_MARK, start)


def _payload(message: bytes, kind: int, start: int) -> tuple[int, int]:
    """Finds where a field's payload begins and ends."""
    if kind == _LENGTH:
        size, start = read_varint(message, start)
        return start, start + size
    if kind == _VARINT:
        return start, read_varint(message, start)[1]
    if kind not in _WIDTHS:
        raise MalformedError
    return start, start + _WIDTHS[kind]


def _written(number: int) -> bytes:
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
