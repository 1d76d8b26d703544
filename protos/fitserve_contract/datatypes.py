"""Element datatypes in the Open Inference Protocol's spelling, and their numpy dtypes.

Source: KServe Open Inference Protocol v2, "Tensor Data Types"; BF16 as Triton extends it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

BOOL: Final = "BOOL"
BYTES: Final = "BYTES"

BF16: Final = "BF16"
"""numpy has no bfloat16: BF16 tensors travel as their uint16 bit patterns."""

NUMPY_DTYPES: Final[dict[str, np.dtype[np.generic]]] = {
    BOOL: np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    BF16: np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(object),
}
"""Datatype to the little-endian dtype of its elements; BYTES elements are Python `bytes` objects."""

_DATATYPE_OF_KIND: Final = {
    (dtype.kind, dtype.itemsize): datatype for datatype, dtype in NUMPY_DTYPES.items() if datatype not in (BF16, BYTES)
}


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """Gives the datatype of a numpy dtype: object, bytes and str arrays are BYTES.

    Raises:
        ValueError: no datatype has these elements (complex, datetime, structured, longdouble).
    """
    if dtype.kind in "OSU":
        return BYTES
    try:
        return _DATATYPE_OF_KIND[(dtype.kind, dtype.itemsize)]
    except KeyError:
        raise ValueError(
            f"dtype {dtype}: expected one of {', '.join(_known())}, got an element no datatype has"
        ) from None


def _known() -> list[str]:
    return sorted({str(dtype) for dtype in NUMPY_DTYPES.values()})
