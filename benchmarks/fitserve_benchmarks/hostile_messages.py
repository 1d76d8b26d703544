"""Hostile messages of any protobuf type, made from its descriptor: values at their bounds, then damage to the bytes.

All chance comes from one `random.Random`: a seed repeats a run, and a property test can put its own in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve_oip import health_pb2
from fitserve_oip import inference_pb2 as oip_pb2

_MAX_DEPTH: Final = 4
_INT32: Final = (0, 1, -1, 2, 3, 4, 255, 65_536, 2**31 - 1, -(2**31))
_INT64: Final = (*_INT32, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), 2**32 + 1)
_REALS: Final = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_STRINGS: Final = (
    *("", "x", "y", "1", "0", "-1", "01", "1.0", "99999999999999999999", "stable", "canary", "latest"),
    *("../../etc/passwd", "..", ".", "/", "/etc/passwd", "a/../../b", "%2e%2e%2f", "file:///etc/passwd", "~root"),
    *("\0", "x\0y", '\n{"level": "error"}\n', "\x1b[2J", "‮x", "é" * 64, "𝟙", "x" * 4_096, "$(id)", "{0}{1}", "%s%n"),
    *("manifest.json", "model.onnx", "../other/1/model.onnx", "SHA256SUMS", "classification", "shared_memory_region"),
)
_DATATYPES: Final = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"),
    *("BYTES", "fp32", "FP8", "", "STRING", "object", "O", "V4"),
)
_CONTENT_SIZES: Final = (0, 0, 1, 3, 4, 5, 7, 8, 16, 24, 64, 1_000)


class HostileMessages:
    """Makes messages that no caller of good will sends.

    Args:
        random: Every choice.
        names: Strings that mean something to the server (model names, tensor names), among which others are mixed.
    """

    def __init__(self, random: Random, names: Sequence[str] = ()) -> None:
        self._random = random
        self._names = (*names, *_STRINGS)

    def message(self, kind: Any, seeds: Sequence[bytes] = ()) -> bytes:
        """Makes a serialized message of a type, or bytes that are nearly one.

        Args:
            kind: The type.
            seeds: Messages of it that the server takes; half of what is made are these with something changed.
        """
        message = GetMessageClass(kind)()
        if seeds and self._random.random() < 0.5:
            message.ParseFromString(self._random.choice(seeds))
            for _ in range(self._random.randint(1, 3)):
                self._change(message)
        else:
            self._fill(message, 0)
        content: bytes = message.SerializePartialToString()
        return self.damaged(content) if self._random.random() < 0.3 else content

    def damaged(self, content: bytes) -> bytes:
        """Damages bytes: cut off, bits flipped, a length that lies, a piece twice or in another's place."""
        data = bytearray(content)
        for _ in range(self._random.randint(1, 3)):
            at = self._random.randint(0, max(len(data) - 1, 0))
            way = self._random.randint(0, 5)
            if way == 0:
                del data[at:]
            elif way == 1 and data:
                data[at] ^= 1 << self._random.randint(0, 7)
            elif way == 2:
                data[at:at] = self._random.choice(
                    (b"\xff" * 9 + b"\x7f", b"\xff\xff\xff\xff\x07", b"\x0b", b"\x80" * 11)
                )
            elif way == 3:
                data[at:at] = data[at : at + self._random.randint(1, 64)]
            elif way == 4 and data:
                data[at] = self._random.choice((0x00, 0x7F, 0x80, 0xFF))
            else:
                data += self._random.randbytes(self._random.randint(1, 16))
        return bytes(data)

    def _fill(self, message: Message, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.6:
                self._set(message, field, depth)

    def _set(self, message: Any, field: Any, depth: int) -> None:
        if field.message_type is not None and depth >= _MAX_DEPTH:
            return
        if not field.is_repeated:
            if field.message_type is not None:
                getattr(message, field.name).SetInParent()
                self._fill(getattr(message, field.name), depth + 1)
            else:
                setattr(message, field.name, self._scalar(field))
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._put_entry(getattr(message, field.name), field.message_type, depth)
        else:
            self._extend(getattr(message, field.name), field, depth)

    def _extend(self, repeated: Any, field: FieldDescriptor, depth: int) -> None:
        for _ in range(self._random.choice((0, 1, 1, 2, 3, 40) if depth == 0 else (0, 1, 2))):
            if field.message_type is None:
                repeated.append(self._scalar(field))
            else:
                self._fill(repeated.add(), depth + 1)

    def _put_entry(self, entries: Any, kind: Descriptor, depth: int) -> None:
        key, value = self._scalar(kind.fields_by_name["key"]), kind.fields_by_name["value"]
        if value.message_type is None:
            entries[key] = self._scalar(value)
        else:
            self._fill(entries[key], depth + 1)

    def _scalar(self, field: Any) -> Any:
        random, kind = self._random, field.cpp_type
        if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32):
            return random.choice(_INT64 if kind == FieldDescriptor.CPPTYPE_INT64 else _INT32)
        if kind in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32):
            values = _INT64 if kind == FieldDescriptor.CPPTYPE_UINT64 else _INT32
            return abs(random.choice(values)) % (1 << 63)
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return random.choice(_REALS)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            known = list(field.enum_type.values_by_number)
            return random.choice(known if field.enum_type.is_closed else [*known, 99, -1, 2**31 - 1])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.randbytes(random.choice(_CONTENT_SIZES))
        return random.choice(_DATATYPES if field.name == "datatype" else self._names)

    def _change(self, message: Message) -> None:
        """Changes one field somewhere in a message: cleared, another value, or an element twice."""
        places = list(_places(message))
        if not places:
            return self._fill(message, 0)
        owner, field = self._random.choice(places)
        way = self._random.random()
        if way < 0.2:
            owner.ClearField(field.name)
        elif way < 0.5 and field.is_repeated and not _is_map(field):
            repeated = getattr(owner, field.name)
            repeated.extend(list(repeated)[-1:])
        else:
            owner.ClearField(field.name)
            self._set(owner, field, 1)
        return None


def unary_methods() -> dict[str, Descriptor]:
    """Gives every unary method that a server has to answer, `/package.Service/Method`, with its request's type."""
    services: list[ServiceDescriptor] = [
        service
        for module in (inference_pb2, control_pb2, oip_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    return {
        f"/{service.full_name}/{method.name}": method.input_type
        for service in services
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    }


def _places(message: Any) -> list[tuple[Any, FieldDescriptor]]:
    """Lists every field that is set, here and in the messages within, with the message that has it."""
    found = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.message_type is not None and not _is_map(field):
            for part in value if field.is_repeated else (value,):
                found += _places(part)
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
