"""Bytes to messages: the one parser of everything that callers send, so that no two can disagree over it."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fitserve_service.errors import Reason, ServiceError

MessageT = TypeVar("MessageT", bound=Message)


def parse(kind: type[MessageT], message: bytes) -> MessageT:
    """Reads a message; fields that it does not know are ignored.

    Raises:
        ServiceError: MALFORMED_MESSAGE.
    """
    try:
        return kind.FromString(message)
    except DecodeError:
        text = f"message: expected {kind.DESCRIPTOR.full_name}, got {len(message)} bytes that are none"
        raise ServiceError(Reason.MALFORMED_MESSAGE, text) from None
