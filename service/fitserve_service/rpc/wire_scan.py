"""Counts what a serialized message holds before it is parsed, and stops early: parsing costs many times its bytes.

A message is a frame (names, shapes, parameters) around the contents of its tensors. A frame is walked field by field,
up to a bound. Contents of fixed width are skipped as a whole. Typed contents repeat small fields millions of times:
they are counted at the speed of C, in runs.

Source of the wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_RANK: Final = 32
"""As `fitserve_contract.tensor_bytes` has it, which brings numpy: the settings read this module, and numpy's threads
would take signals that a server has to keep."""

DEFAULT_MAX_ELEMENTS: Final = 1 << 18
"""BYTES elements of one message: from the wire to the model and back, each takes up to 400 bytes of memory beside its
own, which with the largest message stays below 256 MiB."""

ELEMENT_COST: Final = 16
"""An element of text, which costs objects of Python. A number of typed contents costs 1."""

COST_BYTES: Final = 8
"""Bytes of text that cost 1: every 128 bytes count as one more element, for they are copied eight times."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GROUPS = (3, 4)
_MESSAGE, _TENSOR, _NAME = 0, 1, 2
"""What the next field lies in."""

_SHAPE: Final = 3
"""Number of the field with the shape, in every tensor."""

_PACKED_WIDTHS: Final = {6: 4, 7: 8}
_MOST_NUMBER_BYTES: Final = 10
_MOST_NUMBER: Final = (1 << 64) - 1
_RUN: Final = 1 << 14
"""Fields that one match takes: about a millisecond, so that other threads have their turn."""

_TEXT_RUN: Final = 256
_LIST_COST: Final = 4 * ELEMENT_COST
"""A list of numbers: encoders write one for each tensor."""

_CHUNK_BYTES: Final = 1 << 20
_HIGH: Final = bytes(range(0x80, 0x100))
"""Bytes that do not end a number."""


class GroupError(ValueError):
    """A message holds a group, which none of our messages has and no client sends."""


class MalformedError(ValueError):
    """A message that no parser takes."""


class TooManyFieldsError(ValueError):
    """A message has more fields than are walked."""


class AxesError(ValueError):
    """A tensor's shape has more axes than `MAX_RANK`."""


class Layout(NamedTuple):
    """Where a message holds the contents of tensors.

    Args:
        tensors: Numbers of the fields that are tensors; in each, field 2 is the datatype and field 3 the shape.
        contents: Number of the field of a tensor that holds its contents.
        raw: Number of the message's field that holds raw contents; 0: none.
        is_typed: A tensor's contents are a message of typed elements (InferTensorContents), no bytes.
        names: Numbers of further fields that are walked.
    """

    tensors: frozenset[int]
    contents: int
    raw: int = 0
    is_typed: bool = False
    names: frozenset[int] = frozenset()


class Scan(NamedTuple):
    """What a message holds.

    Args:
        frame_bytes: Bytes outside the contents of tensors.
        text_bytes: Bytes of raw contents of BYTES tensors.
        typed_bytes: Bytes of typed contents.
        typed: Begin and end of each typed contents.
    """

    frame_bytes: int
    text_bytes: int
    typed_bytes: int
    typed: list[tuple[int, int]]


def scan(message: bytes, layout: Layout, most_fields: int) -> Scan | None:
    """Walks a message's frame.

    Args:
        message: As it came.
        layout: Of its kind.
        most_fields: Fields of the message and of its tensors after which the walk is given up.

    Returns:
        None where there are more fields.

    Raises:
        MalformedError: a field goes past the end of what it lies in, or is none: no parser takes the message.
        GroupError: the message holds a group.
        AxesError: a tensor has too many axes. Read, each of a million would cost its object.
    """
    tensors, contents, raw, is_typed, names = layout
    typed: list[tuple[int, int]] = []
    # The first of each stands for no tensor: wherever a field of one may come, there is a last entry.
    are_texts, raw_bytes = [False], [0]
    typed_bytes = count = start = axes = 0
    part = _MESSAGE
    # Where the part ends that the next field lies in.
    limit = end = len(message)
    # The loop of this module: one step for each field, on the path of every message that fits no template.
    try:
        while start < end:
            tag = message[start]
            start += 1
            if tag >= 0x80:
                tag, start = read_varint(message, start - 1)
            count += 1
            if count > most_fields:
                return None
            kind = tag & 7
            if kind == _LENGTH:
                size = message[start]
                start += 1
                if size >= 0x80:
                    size, start = read_varint(message, start - 1)
                number = tag >> 3
                if part == _TENSOR:
                    if number == contents:
                        if is_typed:
                            typed.append((start, start + size))
                            typed_bytes += size
                        else:
                            raw_bytes[-1] += size
                    elif number == 2 and message.startswith(b"BYTES", start):
                        are_texts[-1] = True
                    elif number == _SHAPE:
                        axes += _axis_count(message, start, size)
                elif part == _NAME:
                    # Whatever it holds is frame: a parser keeps it as it is.
                    pass
                elif number in tensors:
                    part, limit, axes = _TENSOR, start + size, 0
                    are_texts.append(False)
                    if not raw:
                        raw_bytes.append(0)
                    size = 0
                elif number in names:
                    part, limit, size = _NAME, start + size, 0
                elif number == raw:
                    raw_bytes.append(size)
                start += size
            elif kind == _VARINT:
                last = start + _MOST_NUMBER_BYTES
                while message[start] >= 0x80 and start < last:
                    start += 1
                if start == last:
                    raise MalformedError
                start += 1
                if part == _TENSOR and tag >> 3 == _SHAPE:
                    axes += 1
            elif kind == _FIXED32:
                start += 4
            elif kind == _FIXED64:
                start += 8
            elif kind in _GROUPS:
                # A parser skips what it holds as a whole; here it would be taken for fields of the message.
                raise GroupError
            else:
                raise MalformedError
            if start >= limit:
                if start > limit:
                    raise MalformedError
                part, limit = _MESSAGE, end
            if axes > MAX_RANK:
                raise AxesError
    except IndexError:
        raise MalformedError from None
    if limit != end:
        raise MalformedError
    # Where their numbers differ, the request is refused before its contents are read.
    text_bytes = sum(size for is_text, size in zip(are_texts, raw_bytes, strict=False) if is_text)
    return Scan(end - sum(raw_bytes) - typed_bytes, text_bytes, typed_bytes, typed)


def _axis_count(message: bytes, start: int, size: int) -> int:
    """Counts the axes of a packed shape; of one with more bytes than `MAX_RANK` axes take, no further than that."""
    if size > MAX_RANK * _MOST_NUMBER_BYTES:
        return MAX_RANK + 1
    return len(message[start : start + size].translate(None, _HIGH))


def typed_cost(message: bytes, start: int, end: int, most: int) -> int:
    """Counts what the elements of an InferTensorContents cost, in units of a number.

    Args:
        message: The message that it lies in.
        start: Where it begins.
        end: Where it ends.
        most: Where more is found, the count ends.
    """
    cost, end = 0, min(end, len(message))
    try:
        while start < end and cost <= most:
            tag = message[start]
            pattern = _RUNS.get(tag)
            match = pattern.match(message, start, end) if pattern is not None else None
            if match is not None:
                found, start = _run_cost(tag, match.group()), match.end()
            elif tag == _TEXT_TAG:
                found, start = _texts_cost(message, start, end)
            else:
                found, start = _field_cost(message, start, end, most)
            cost += found
    except IndexError:
        # Cut off: the parser says so, and has met no more elements by then than were counted here.
        pass
    return cost


def _run_cost(tag: int, run: bytes) -> int:
    if tag == _TEXT_TAG:
        return _TEXT_RUN * ELEMENT_COST + len(run) // COST_BYTES
    if tag & 7 == _VARINT:
        # A tag of one byte and the last byte of the number.
        return len(run.translate(None, _HIGH)) // 2
    return len(run) // (5 if tag & 7 == _FIXED32 else 9)


def _texts_cost(message: bytes, start: int, end: int) -> tuple[int, int]:
    """Counts as many elements of text as make a run, one by one; gives their cost and where they end."""
    cost = 0
    for _ in range(_TEXT_RUN):
        if start >= end or message[start] != _TEXT_TAG:
            break
        size = message[start + 1]
        start += 2
        if size >= 0x80:
            size, start = read_varint(message, start - 1)
        start += size
        cost += ELEMENT_COST + size // COST_BYTES
    return cost, start


def _field_cost(message: bytes, start: int, end: int, most: int) -> tuple[int, int]:
    """Counts one list of numbers, or what no encoder writes; gives its cost and where it ends."""
    tag, start = read_varint(message, start)
    kind, number = tag & 7, tag >> 3
    if kind == _VARINT:
        return _LIST_COST, read_varint(message, start)[1]
    if kind != _LENGTH:
        return _LIST_COST, start + {_FIXED32: 4, _FIXED64: 8}.get(kind, 0)
    size, start = read_varint(message, start)
    if number >= _FIRST_TEXT:
        return _LIST_COST + size // COST_BYTES, start + size
    return _LIST_COST + _packed_count(message, start, min(start + size, end), number, most), start + size


def _packed_count(message: bytes, start: int, end: int, number: int, most: int) -> int:
    size = end - start
    if width := _PACKED_WIDTHS.get(number):
        return size // width
    if size // _MOST_NUMBER_BYTES > most:
        return size // _MOST_NUMBER_BYTES
    chunks = range(start, end, _CHUNK_BYTES)
    return sum(len(message[begin : min(begin + _CHUNK_BYTES, end)].translate(None, _HIGH)) for begin in chunks)


def read_varint(message: bytes, start: int) -> tuple[int, int]:
    """Reads a number and returns it with the place behind it.

    Bits past 64 are dropped, as protobuf drops them: a length that wraps around is short for the parser.

    Raises:
        IndexError: it has no end within ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = message[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MOST_NUMBER, start
    raise IndexError(start)


_FIRST_TEXT: Final = 8
"""InferTensorContents.bytes_contents; the fields before it are numbers."""

_TEXT_TAG: Final = _FIRST_TEXT << 3 | _LENGTH


def _runs() -> dict[int, re.Pattern[bytes]]:
    """Tag byte to what matches fields of InferTensorContents that follow each other, one element each."""
    bodies = {number << 3 | _VARINT: rb"[\x80-\xff]{0,9}+[\x00-\x7f]" for number in range(1, 6)}
    bodies |= {6 << 3 | _FIXED32: b".{4}", 7 << 3 | _FIXED64: b".{8}"}
    found = {tag: b"(?:%b%b){1,%d}+" % (re.escape(bytes([tag])), body, _RUN) for tag, body in bodies.items()}
    lengths = b"|".join(re.escape(bytes([size])) + b".{%d}" % size for size in range(0x80))
    found[_TEXT_TAG] = b"(?:%b(?:%b)){%d}+" % (re.escape(bytes([_TEXT_TAG])), lengths, _TEXT_RUN)
    return {tag: re.compile(pattern, re.DOTALL) for tag, pattern in found.items()}


_RUNS: Final = _runs()
