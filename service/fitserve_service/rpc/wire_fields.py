"""Selects fields of a serialized message, so that its parser reads a few bytes instead of all of them.

Source of the wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from fitserve_service.rpc.wire_scan import GroupError, MalformedError, TooManyFieldsError, read_varint

_VARINT, _LENGTH = 0, 2
_GROUPS = (3, 4)
_WIDTHS: Final = {1: 8, 5: 4}


def select(message: bytes, numbers: Set[int], most_fields: int) -> bytes:
    """Copies the top-level fields of some numbers, in their order.

    A parser reads these fields in the result as it reads them in the message: what repeats, is merged or has another
    wire type is left to it. That holds unless one of them shares a oneof with a field that is left out.

    Args:
        message: As it came.
        numbers: Of the fields to copy.
        most_fields: Top-level fields of the message after which the walk is given up.

    Raises:
        MalformedError: no parser takes the message.
        GroupError: it holds a group, which a parser skips together with the fields that lie in it.
        TooManyFieldsError: it has more than `most_fields`.
    """
    pieces: list[bytes] = []
    start, end, count = 0, len(message), 0
    try:
        while start < end:
            count += 1
            if count > most_fields:
                raise TooManyFieldsError
            tag, behind = read_varint(message, start)
            behind = _field_end(message, tag & 7, behind)
            if behind > end or not tag >> 3:
                raise MalformedError
            if tag >> 3 in numbers:
                pieces.append(message[start:behind])
            start = behind
    except IndexError:
        raise MalformedError from None
    return b"".join(pieces)


def _field_end(message: bytes, kind: int, start: int) -> int:
    if kind == _LENGTH:
        size, start = read_varint(message, start)
        return start + size
    if kind == _VARINT:
        return read_varint(message, start)[1]
    if kind in _GROUPS:
        raise GroupError
    if kind not in _WIDTHS:
        raise MalformedError
    return start + _WIDTHS[kind]
