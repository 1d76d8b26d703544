"""Types of inputs and outputs as ONNX Runtime spells them: which are served as tensors, and the way out for the others.

`tensor(float)`, `optional(tensor(float))`, `seq(map(int64,tensor(float)))`, `tensor(float8e4m3fn)`.
Source: ONNX Runtime, DataTypeUtils::ToType.
"""

from __future__ import annotations

from typing import Final

from fitserve_contract.datatypes import BF16, BYTES

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

_ZIPMAP: Final = (
    "convert again with skl2onnx options={'zipmap': False} (onnxmltools: zipmap=False), or take the input of the "
    "ZipMap node as the output"
)


_NO_NAMES: Final = frozenset(("", "?", "-1", "*", "None", "none", "null", "unk", "unknown", "dynamic"))
"""What exporters write where an axis has no name. Sources: Paddle2ONNX 1.0 ("?"), onnxruntime#1331 ("None", "-1")."""


def axis_name(axis: int | str | None) -> str | None:
    """Returns the name of a free axis; None where it is fixed, or only called as exporters call what has no name."""
    if not isinstance(axis, str) or axis.strip() in _NO_NAMES or axis.startswith("unk__"):
        return None
    return axis


def datatype_of_type(onnx_type: str) -> str | None:
    """Returns the datatype of a tensor type, optional or not; None where it is no tensor that is served."""
    return _DATATYPES.get(_inner(onnx_type, "optional") or onnx_type)


def is_optional_type(onnx_type: str) -> bool:
    """Tells whether a value of the type may be left out."""
    return onnx_type.startswith("optional(")


def unserved_text(onnx_type: str, what: str) -> str:
    """Describes a type that is not served: what it is, and how to get a tensor instead.

    Args:
        onnx_type: A type for which `datatype_of_type` returns None.
        what: "input" or "output".
    """
    return f"expected a tensor of a served datatype, got {_kind(onnx_type)} ({onnx_type}); {_remedy(onnx_type, what)}"


def _kind(onnx_type: str) -> str:
    if inner := _inner(onnx_type, "optional"):
        return f"an optional value: {_kind(inner)}"
    if inner := _inner(onnx_type, "seq"):
        return "a sequence of maps" if inner.startswith("map(") else "a sequence"
    if onnx_type.startswith("map("):
        return "a map"
    if onnx_type.startswith("sparse_tensor("):
        return "a sparse tensor"
    element = _inner(onnx_type, "tensor")
    return f"a tensor of {element}" if element else "a value that is no tensor"


def _remedy(onnx_type: str, what: str) -> str:
    inner = _inner(onnx_type, "optional") or onnx_type
    element = _inner(inner, "tensor")
    if "map(" in inner:
        return _ZIPMAP if what == "output" else "take its keys and values as two tensors"
    if inner.startswith("seq("):
        node = "ConcatFromSequence" if what == "output" else "SplitToSequence"
        side = "to" if what == "output" else "from"
        return f"convert it {side} a tensor in the graph ({node})"
    if not element:
        return "use a dense tensor"
    if element.startswith("complex"):
        return "use a float tensor whose last axis holds the real and the imaginary part (torch.view_as_real)"
    wide = "INT8 or UINT8" if "int" in element else "FP32 or FP16"
    return f"add a Cast node {'to' if what == 'output' else 'from'} {wide}"


def _inner(onnx_type: str, outer: str) -> str:
    is_it = onnx_type.startswith(f"{outer}(") and onnx_type.endswith(")")
    return onnx_type[len(outer) + 1 : -1] if is_it else ""
