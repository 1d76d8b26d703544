"""Signatures and values as ONNX Runtime has them, into ours and back; none of it needs the runtime itself."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fitserve_contract.datatypes import BYTES
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.onnx_types import datatype_of_type, is_optional_type, unserved_text
from fitserve_service.run_errors import OperatorError, SessionError, TooManyElementsError
from fitserve_service.signature import Tensor


def tensor_spec(
    node: Any, shapes: Mapping[str, tuple[int | str | None, ...] | None], *, has_default: bool
) -> TensorSpec | None:
    """Describes an input or output; None where it is no tensor.

    Args:
        node: The runtime's description.
        shapes: Name to shape, as the file says.
        has_default: It may be left out.
    """
    found = datatype_of_type(node.type)
    if found is None:
        return None
    is_optional = has_default or is_optional_type(node.type)
    # The runtime says [] for a scalar and for an open rank alike; the file tells them apart.
    shape = tuple(node.shape) if node.shape or node.name not in shapes else shapes[node.name]
    return TensorSpec(node.name, found, None if is_optional_type(node.type) else shape, is_optional)


def unserved(required: Sequence[Any], defaulted: Sequence[Any], outputs: Sequence[Any]) -> Iterator[str]:
    """Names the inputs and outputs that are left out because they are no tensors, with the way to get tensors.

    Args:
        required: The runtime's descriptions of the inputs that no initializer fills.
        defaulted: Of those that an initializer fills.
        outputs: Of the outputs.

    Raises:
        SessionError: an input cannot be left out, or no output is a tensor.
    """
    for node in (*required, *defaulted):
        if datatype_of_type(node.type) is not None:
            continue
        text = unserved_text(node.type, "input")
        if node in required and not is_optional_type(node.type):
            raise SessionError(f"input '{node.name}': {text}")
        yield f"input '{node.name}' keeps its default: {text}"
    missing = [node for node in outputs if datatype_of_type(node.type) is None]
    if len(missing) == len(outputs):
        texts = [f"output '{node.name}': {unserved_text(node.type, 'output')}" for node in missing]
        raise SessionError("; ".join(texts) or "outputs: expected at least one tensor, found none")
    for node in missing:
        yield f"output '{node.name}' is not served: {unserved_text(node.type, 'output')}"


def fed(name: str, tensor: Tensor) -> Any:
    """Gives the array that the runtime takes for an input.

    Raises:
        OperatorError: an element of BYTES is not UTF-8.
    """
    return _strings(name, tensor.array) if tensor.datatype == BYTES else tensor.array


def taken(name: str, array: Any, max_elements: int = 0) -> Any:
    """Gives the array that we hand on for an output of the runtime's.

    Raises:
        OperatorError: there is none for these values, or one of more than `max_elements` texts.
    """
    if array is None:
        raise OperatorError(f"output '{name}': expected a tensor, got none for these values")
    if array.dtype != object:
        return array
    check_texts(name, array.shape, max_elements)
    elements = np.empty(array.size, object)
    elements[:] = [element.encode() if isinstance(element, str) else bytes(element) for element in array.reshape(-1)]
    return elements.reshape(array.shape)


def check_texts(name: str, shape: Sequence[int], max_elements: int) -> None:
    """Holds an output of texts against a bound.

    Args:
        name: Of the output.
        shape: Of it.
        max_elements: As of `--max-elements`; 0: none.

    Raises:
        TooManyElementsError: it has more.
    """
    count = math.prod(shape)
    if max_elements and count > max_elements:
        text = f"output '{name}': expected at most {max_elements} BYTES elements (the server's --max-elements)"
        raise TooManyElementsError(f"{text}, got {count}; ask for fewer rows, or raise that setting")


def array_of(name: str, value: Any, max_elements: int = 0) -> Any:
    """Gives the array of a runtime's tensor, bit patterns for BF16; None where it holds none.

    Raises:
        OperatorError: it is BF16 on a GPU, or holds more than `max_elements` texts.
    """
    if not value.has_value():
        return None
    if value.data_type() == "tensor(string)":
        check_texts(name, value.shape(), max_elements)
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count == 0:
        return np.empty(shape, "<u2")
    if value.device_name() != "cpu":
        raise OperatorError("BF16 outputs on a GPU cannot be copied by this runtime: cast them to FP32 in the graph")
    bits = ctypes.string_at(value.data_ptr(), count * 2)
    return np.frombuffer(bits, "<u2").reshape(shape)


def _strings(name: str, array: Any) -> Any:
    """BYTES elements as str: the runtime's strings are UTF-8, and it would quote other bytes without a word."""
    strings = np.empty(array.size, object)
    try:
        strings[:] = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError:
        index = next(index for index, element in enumerate(array.reshape(-1)) if not _is_text(element))
        raise OperatorError(f"input '{name}': expected UTF-8 text, got other bytes in element {index}") from None
    return strings.reshape(array.shape)


def _is_text(element: bytes) -> bool:
    return element == element.decode(errors="ignore").encode()
