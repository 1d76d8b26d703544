"""Messages and tensors of our own API: bytes to what the engine runs, and back."""

from __future__ import annotations

from collections.abc import Iterable

from fitserve.types.v1 import tensor_pb2
from fitserve_contract import tensor_bytes
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.signature import Tensor

MAX_NAME_CHARS = 128
"""Longer names are cut in messages."""


def decode_inputs(tensors: Iterable[tensor_pb2.Tensor]) -> dict[str, Tensor]:
    """Reads a request's tensors in place.

    Returns:
        Input name to tensor, in the request's order; arrays are read-only views of the message's bytes.

    Raises:
        ServiceError: INVALID_INPUT; a name comes twice, or a tensor's datatype, shape and bytes do not fit.
    """
    inputs: dict[str, Tensor] = {}
    for tensor in tensors:
        decoded = decode_tensor(f"input '{tensor.name[:MAX_NAME_CHARS]}'", tensor)
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


def decode_tensor(what: str, tensor: tensor_pb2.Tensor, reason: Reason = Reason.INVALID_INPUT) -> Tensor:
    """Reads one tensor in place.

    Args:
        what: What it is, for messages: `input 'image'`, `labels`.
        tensor: The message.
        reason: The case where it cannot be read.

    Raises:
        ServiceError: `reason`.
    """
    return decode_raw(what, tensor.datatype, tuple(tensor.shape), tensor.content, reason)


def decode_raw(
    what: str, datatype: str, shape: tuple[int, ...], content: bytes, reason: Reason = Reason.INVALID_INPUT
) -> Tensor:
    """Reads a tensor from its bytes in place; see `decode_tensor`."""
    try:
        return Tensor(datatype, tensor_bytes.decode("", datatype, shape, content))
    except ValueError as error:
        # The contract names a tensor of any API; here it is known to be an input, or labels.
        raise ServiceError(reason, f"{what}: {str(error).removeprefix(_UNNAMED)}", tensor=what) from None


def encode_tensor(name: str, tensor: Tensor) -> tensor_pb2.Tensor:
    """Writes a tensor as a message."""
    content = tensor_bytes.encode(tensor.array, tensor.datatype)
    return tensor_pb2.Tensor(name=name, datatype=tensor.datatype, shape=tensor.array.shape, content=content)


_UNNAMED = "tensor '': "
