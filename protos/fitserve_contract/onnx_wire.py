"""Reads protobuf messages field by field, without generated code and without a Python step per number.

Everything here is untrusted: a length that passes its buffer or a number that does not end is an error.

Source: protobuf encoding guide (wire types; packed and unpacked repeated fields).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


_CHUNK = 1 << 16
"""Bytes that one regular expression passes over before they are paid for."""


class OnnxFileError(ValueError):
    """The bytes are no ONNX model."""


class WorkLimitError(Exception):
    """Reading or following the graph takes more steps than for any model that people have."""


class Budget:
    """Counts down the steps that one file may cost, each well below a microsecond and about 100 bytes.

    Args:
        steps: All of them.
    """

    __slots__ = ("_steps", "left")

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.left = steps

    def spend(self, steps: int) -> None:
        """Counts steps.

        Raises:
            WorkLimitError: there are none left.
        """
        self.left -= steps
        if self.left < 0:
            raise WorkLimitError(f"it takes more than {self._steps:,} steps")


class Run:
    """Equal-numbered fields of numbers that follow each other (unpacked) or lie in one field (packed).

    Args:
        content: Bytes of the run.
        wire_type: Of each number.
        is_tagged: Each number follows its tag byte.
    """

    __slots__ = ("content", "is_tagged", "wire_type")

    def __init__(self, content: memoryview, wire_type: int, is_tagged: bool) -> None:
        self.content = content
        self.wire_type = wire_type
        self.is_tagged = is_tagged


Field = tuple[int, int | memoryview | Run]


def _run_pattern(tag: int) -> re.Pattern[bytes]:
    head = re.escape(bytes([tag]))
    body = rb"[\x80-\xff]{0,9}+[\x00-\x7f]" if tag & 7 == _VARINT else b".{%d}" % _WIDTHS[tag & 7]
    return re.compile(b"(?:" + head + body + b")++", re.DOTALL)


_RUNS: Final = {tag: _run_pattern(tag) for tag in range(0x80) if tag & 7 in (_VARINT, _FIXED64, _FIXED32)}
"""Tag byte to what matches it with its number, again and again."""


def short_fields(number: int) -> re.Pattern[bytes]:
    """Returns what matches a run of fields of up to 127 bytes each, for fields that nobody reads one by one."""
    tag = re.escape(bytes([number << 3 | _LENGTH]))
    lengths = b"|".join(re.escape(bytes([size])) + b".{%d}" % size for size in range(0x80))
    return re.compile(b"(?:" + tag + b"(?:" + lengths + b"))++", re.DOTALL)


def fields(
    message: memoryview, skipped: re.Pattern[bytes] | None = None, budget: Budget | None = None
) -> Iterator[Field]:
    """Yields each field's number with its value: an int for numbers alone, a run of them, the bytes for the rest.

    A number that the same tag follows is yielded with all that follow it as one Run.

    Args:
        message: A serialized message.
        skipped: What is passed over unread, from `short_fields`.
        budget: What each field is paid from; without one, nothing bounds the work.

    Raises:
        OnnxFileError: the bytes are no protobuf message.
        WorkLimitError: the budget is spent.
    """
    offset, end = 0, len(message)
    while offset < end:
        if budget is not None:
            budget.spend(1)
        start, tag = offset, message[offset]
        offset += 1
        if tag >= 0x80:
            tag, offset = _varint(message, start)
        wire_type = tag & 7
        if wire_type == _LENGTH:
            if skipped is not None and (match := skipped.match(message, start, start + _CHUNK)) is not None:
                offset = match.end()
                if budget is not None:
                    budget.spend((offset - start) // 32)
                continue
            size = message[offset] if offset < end else 0x80
            offset += 1
            if size >= 0x80:
                # Two bytes are the length of most nodes and of what exporters write about them.
                if offset < end and message[offset] < 0x80:
                    size, offset = size & 0x7F | message[offset] << 7, offset + 1
                else:
                    size, offset = _varint(message, offset - 1)
            if offset + size > end:
                raise _cut_off(size, end - offset)
            yield tag >> 3, message[offset : offset + size]
            offset += size
            continue
        value, offset = _number(message, offset, wire_type)
        if offset < end and message[offset] == tag and tag < 0x80:
            match = _RUNS[tag].match(message, start)
            if match is not None and match.end() > offset:
                offset = match.end()
                if budget is not None:
                    budget.spend(4 + (offset - start) // 256)
                yield tag >> 3, Run(message[start:offset], wire_type, True)
                continue
        yield tag >> 3, value


def _number(message: memoryview, offset: int, wire_type: int) -> tuple[int, int]:
    if wire_type == _VARINT:
        return _varint(message, offset)
    size = _WIDTHS.get(wire_type)
    if size is None:
        raise OnnxFileError(f"file 'model.onnx': expected a protobuf field, found wire type {wire_type}")
    if offset + size > len(message):
        raise _cut_off(size, len(message) - offset)
    return int.from_bytes(message[offset : offset + size], "little"), offset + size


def _cut_off(size: int, found: int) -> OnnxFileError:
    return OnnxFileError(f"file 'model.onnx': expected {size} bytes in a field, found {found}: cut off?")


def _varint(message: memoryview, offset: int) -> tuple[int, int]:
    result = shift = 0
    while shift < 70:
        if offset >= len(message):
            raise OnnxFileError("file 'model.onnx': expected a number, found the end: cut off?")
        byte = message[offset]
        offset += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & ((1 << 64) - 1), offset
        shift += 7
    raise OnnxFileError("file 'model.onnx': expected a number of at most 10 bytes")


def integers(value: int | memoryview | Run, limit: int) -> list[int] | None:
    """Returns the signed 64-bit integers of a repeated field's part; None where they are more than `limit`.

    Args:
        value: From `fields`, a field of type int32, int64 or enum.
        limit: Most integers.
    """
    if isinstance(value, int):
        return [_signed(value)]
    is_tagged = isinstance(value, Run) and value.is_tagged
    content = value.content if isinstance(value, Run) else value
    if len(content) > limit * 11:
        return None
    found, offset = [], 0
    while offset < len(content):
        number, offset = _varint(content, offset + is_tagged)
        found.append(_signed(number))
    return found if len(found) <= limit else None


def last(value: int | memoryview | Run) -> int | None:
    """Returns the integer of a field that is no repeated one: where it is given again, the last one holds."""
    if isinstance(value, memoryview) or (isinstance(value, Run) and value.wire_type != _VARINT):
        return None
    if isinstance(value, int):
        return _signed(value)
    content = value.content
    begin = len(content) - 1
    while begin > 1 and content[begin - 1] >= 0x80:
        begin -= 1
    return _signed(_varint(content, begin)[0])


def floats(value: int | memoryview | Run, limit: int) -> list[float] | None:
    """Returns the 32-bit floats of a repeated field's part; None where they are more than `limit`."""
    if isinstance(value, int):
        return [struct.unpack("<f", (value & 0xFFFFFFFF).to_bytes(4, "little"))[0]]
    content, width = (value.content, 5) if isinstance(value, Run) else (value, 4)
    if len(content) > limit * width:
        return None
    found = struct.iter_unpack("<xf" if width == 5 else "<f", content[: len(content) // width * width])
    return [number for (number,) in found]


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def text(value: memoryview) -> str:
    """Returns the text; bytes that are no UTF-8 become replacement characters."""
    return bytes(value).decode(errors="replace")
