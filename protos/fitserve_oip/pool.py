"""The private descriptor pool, filled from the committed descriptor set."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS_FILE = "descriptors.binpb"


def descriptor_set() -> FileDescriptorSet:
    """Reads the descriptors of every .proto file of this package, each after what it imports."""
    return FileDescriptorSet.FromString((files(__package__) / DESCRIPTORS_FILE).read_bytes())


@cache
def private_pool() -> DescriptorPool:
    """Gives the one pool that holds this package's messages."""
    pool = DescriptorPool()
    for file in descriptor_set().file:
        pool.Add(file)
    return pool


def symbols(file_name: str) -> dict[str, Any]:
    """Gives what a generated module of a .proto file would define.

    Returns:
        The file's DESCRIPTOR, its message classes and its top-level enum values, by name.
    """
    file = private_pool().FindFileByName(f"fitserve_oip/{file_name}")
    found: dict[str, Any] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        found[name] = GetMessageClass(message)
    for enum in file.enum_types_by_name.values():
        found |= {value.name: value.number for value in enum.values}
    return found
