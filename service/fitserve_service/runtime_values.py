"""Signatures and values as ONNX Runtime has them, into ours and back; none of it needs the runtime itself."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fitserve_contract.datatypes import BF16, BYTES
from fitserve_contract.manifest import TensorSpec
from fitserve_service.run_errors import OperatorError
from fitserve_service.signature import Tensor

_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": BF16,
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}


def datatype(runtime_type: str) -> str | None:
    """Gives the datatype of a runtime's type, optional or not; None where it is no tensor that we serve."""
    if runtime_type.startswith("optional(") and runtime_type.endswith(")"):
        runtime_type = runtime_type[len("optional(") : -1]
    return _DATATYPES.get(runtime_type)


def tensor_spec(
    node: Any, shapes: Mapping[str, tuple[int | str | None, ...] | None], *, has_default: bool
) -> TensorSpec | None:
    """Describes an input or output; None where it is no tensor.

    Args:
        node: The runtime's description.
        shapes: Name to shape, as the file says.
        has_default: It may be left out.
    """
    found = datatype(node.type)
    if found is None:
        return None
    is_optional = has_default or node.type.startswith("optional(")
    # The runtime says [] for a scalar and for an open rank alike; the file tells them apart.
    shape = tuple(node.shape) if node.shape or node.name not in shapes else shapes[node.name]
    return TensorSpec(node.name, found, None if node.type.startswith("optional(") else shape, is_optional)


def fed(name: str, tensor: Tensor) -> Any:
    """Gives the array that the runtime takes for an input.

    Raises:
        OperatorError: an element of BYTES is not UTF-8.
    """
    return _strings(name, tensor.array) if tensor.datatype == BYTES else tensor.array


def taken(name: str, array: Any) -> Any:
    """Gives the array that we hand on for an output of the runtime's.

    Raises:
        OperatorError: there is none for these values.
    """
    if array is None:
        raise OperatorError(f"output '{name}': expected a tensor, got none for these values")
    if array.dtype != object:
        return array
    elements = np.empty(array.size, object)
    elements[:] = [element.encode() if isinstance(element, str) else bytes(element) for element in array.reshape(-1)]
    return elements.reshape(array.shape)


def array_of(value: Any) -> Any:
    """Gives the array of a runtime's tensor, bit patterns for BF16; None where it holds none.

    Raises:
        OperatorError: it is BF16 on a GPU.
    """
    if not value.has_value():
        return None
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
    for index, element in enumerate(array.reshape(-1)):
        try:
            strings[index] = element.decode()
        except UnicodeDecodeError:
            raise OperatorError(f"input '{name}': expected UTF-8 text, got other bytes in element {index}") from None
    return strings.reshape(array.shape)
