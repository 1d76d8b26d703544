"""Ids of requests: a client's name for a request, which its answer is to carry and which means nothing else here.

Clients that send many requests at once give each an id of its own (perf_analyzer with `--async` does), so that no two
are alike. Without their ids they are: what is left of two such messages differs in the contents of its tensors alone. A
field of a message may stand anywhere in it, so an id is taken off the request and put behind the answer.
Source: https://protobuf.dev/programming-guides/encoding/ ("Message Structure": the order of fields).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fitserve_service.calls import Metadata, Origin, UnaryCall
from fitserve_service.errors import ServiceError
from fitserve_service.requests.contents import LARGE_BYTES

_NAME: Final = 0x0A
"""Tag of field 1, a string: the model's name."""

_VERSION: Final = 0x12
"""Tag of field 2, a string."""

_ID: Final = 0x1A
"""Tag of field 3, a string: the id, of ModelInferRequest and of ModelInferResponse."""

_LONG: Final = 0x80
"""Lengths from here on take more than one byte: such an id is left where it is."""


def split_id(message: bytes) -> tuple[bytes, bytes] | None:
    """Takes the id off a ModelInferRequest.

    Args:
        message: Serialized, its first fields in the order of their numbers, as protobuf writes them.

    Returns:
        The message without the id, and the id as a field of either message, tag and length before it; None where there
        is none in that place, or one that is long or no ASCII: protobuf is to say what that is.
    """
    if len(message) >= LARGE_BYTES:
        # No template has one, and it would be copied twice.
        return None
    try:
        if message[0] != _NAME or message[1] >= _LONG:
            return None
        start = 2 + message[1]
        if message[start] == _VERSION:
            if message[start + 1] >= _LONG:
                return None
            start += 2 + message[start + 1]
        if message[start] != _ID or message[start + 1] >= _LONG:
            return None
        end = start + 2 + message[start + 1]
    except IndexError:
        return None
    field = message[start:end]
    if end > len(message) or not field.isascii():
        return None
    return message[:start] + message[end:], field


class NamedCall:
    """A call whose answer carries an id.

    Args:
        call: The call.
        field: The id, as `split_id` gives it.
    """

    __slots__ = ("_call", "_field", "deadline_s", "metadata", "method")

    def __init__(self, call: UnaryCall, field: bytes) -> None:
        self._call = call
        self._field = field
        self.method: str = call.method
        self.deadline_s: float | None = call.deadline_s
        self.metadata: Metadata = call.metadata

    def origin(self) -> Origin:
        """Tells where the call comes from."""
        return self._call.origin()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Registers what to do when the caller goes away before the answer."""
        self._call.on_cancel(callback)

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        """Answers with the id behind what the message has."""
        self._call.reply(message + self._field, trailing)

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error."""
        self._call.fail(error)
