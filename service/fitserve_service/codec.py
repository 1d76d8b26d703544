"""Messages and tensors of our own API: bytes to what the engine runs, and back."""

from __future__ import annotations

from collections.abc import Iterable

from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_contract.datatypes import BYTES
from fitserve_contract.tensor_bytes import LENGTH_BYTES, Array, element_count
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import too_many_elements
from fitserve_service.requests.contents import Contents
from fitserve_service.rpc.wire_scan import COST_BYTES, DEFAULT_MAX_ELEMENTS, ELEMENT_COST
from fitserve_service.signature import Tensor

MAX_NAME_CHARS = 128
"""Longer names are cut in messages."""


_WIDE_BYTES = 64
"""What a shorter text takes as a string is counted with it as an element."""


class ElementRoom:
    """The BYTES elements that one message may still have.

    Args:
        max_elements: As of `--max-elements`.
    """

    __slots__ = ("_left", "_max_elements")

    def __init__(self, max_elements: int = DEFAULT_MAX_ELEMENTS) -> None:
        self._max_elements = max_elements
        self._left = max_elements * ELEMENT_COST

    def take(self, what: str, count: int, size_bytes: int) -> None:
        """Takes a tensor, before it is read.

        Args:
            what: What it is, for messages.
            count: Its elements, as its shape has them.
            size_bytes: Of its elements, without their lengths.

        Raises:
            ServiceError: TOO_LARGE.
        """
        self._left -= count * ELEMENT_COST + size_bytes // COST_BYTES
        if self._left < 0:
            found = self._max_elements - self._left // ELEMENT_COST
            raise too_many_elements(what, self._max_elements, found)

    def take_wide(self, what: str, elements: Array) -> None:
        """Counts large text once more where it is not ASCII: each character may take four bytes as a Python string.

        Args:
            what: What it is, for messages.
            elements: BYTES, read.

        Raises:
            ServiceError: TOO_LARGE.
        """
        sizes = [len(element) for element in elements.flat if len(element) >= _WIDE_BYTES and not element.isascii()]
        self.take(what, 0, sum(sizes))


def decode_inputs(
    tensors: Iterable[tensor_pb2.Tensor], room: ElementRoom | None = None, contents: Contents | None = None
) -> dict[str, Tensor]:
    """Reads a request's tensors in place.

    Args:
        tensors: The messages.
        room: What is left for BYTES elements; None: as much as is there by default.
        contents: What was lifted out of the request; None: nothing.

    Returns:
        Input name to tensor, in the request's order; arrays are read-only views of the message's bytes.

    Raises:
        ServiceError: INVALID_INPUT; a name comes twice, or a tensor's datatype, shape and bytes do not fit. TOO_LARGE;
            more BYTES elements than there is room for.
    """
    room = room or ElementRoom()
    inputs: dict[str, Tensor] = {}
    for tensor in tensors:
        decoded = decode_tensor(f"input '{tensor.name[:MAX_NAME_CHARS]}'", tensor, room=room, contents=contents)
        add_input(inputs, tensor.name, decoded)
    return inputs


def add_input(inputs: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Adds an input.

    Raises:
        ServiceError: INVALID_INPUT; there is one of that name already.
    """
    if name in inputs:
        short = name[:MAX_NAME_CHARS]
        raise ServiceError(Reason.INVALID_INPUT, f"input '{short}': expected it once, got it twice", input=short)
    inputs[name] = tensor


def decode_tensor(
    what: str,
    tensor: tensor_pb2.Tensor,
    reason: Reason = Reason.INVALID_INPUT,
    *,
    room: ElementRoom | None = None,
    contents: Contents | None = None,
) -> Tensor:
    """Reads one tensor in place.

    Args:
        what: What it is, for messages: `input 'image'`, `labels`.
        tensor: The message.
        reason: The case where it cannot be read.
        room: What is left for BYTES elements; None: as much as is there by default.
        contents: What was lifted out of its request; None: nothing.

    Raises:
        ServiceError: `reason`, or TOO_LARGE.
    """
    room = room or ElementRoom()
    content = contents.of(tensor.content) if contents is not None else tensor.content
    return decode_raw(what, tensor.datatype, tuple(tensor.shape), content, reason, room=room)


def decode_raw(
    what: str,
    datatype: str,
    shape: tuple[int, ...],
    content: bytes | memoryview,
    reason: Reason = Reason.INVALID_INPUT,
    *,
    room: ElementRoom,
) -> Tensor:
    """Reads a tensor from its bytes in place; see `decode_tensor`."""
    try:
        # With fewer bytes than their lengths take, nothing is read either.
        if datatype == BYTES and len(content) >= LENGTH_BYTES * (count := element_count("", shape)):
            room.take(what, count, len(content) - LENGTH_BYTES * count)
        array = tensor_bytes.decode("", datatype, shape, content)
        if datatype == BYTES:
            room.take_wide(what, array)
        return Tensor(datatype, array)
    except ValueError as error:
        # The contract names a tensor of any API; here it is known to be an input, or labels.
        raise ServiceError(reason, f"{what}: {str(error).removeprefix(_UNNAMED)}", tensor=what) from None


def encode_tensor(name: str, tensor: Tensor) -> tensor_pb2.Tensor:
    """Writes a tensor as a message."""
    content = tensor_bytes.encode(tensor.array, tensor.datatype)
    return tensor_pb2.Tensor(name=name, datatype=tensor.datatype, shape=tensor.array.shape, content=content)


def field_head(number: int, size: int) -> bytes:
    """Writes what stands before a field's bytes on the wire.

    Args:
        number: Of the field, below 16.
        size: Of its bytes.
    """
    return bytes((number << 3 | 2,)) + varint(size)


def varint(number: int) -> bytes:
    """Writes a number as the wire does."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


_UNNAMED = "tensor '': "
