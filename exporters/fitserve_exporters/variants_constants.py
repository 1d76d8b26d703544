"""Constants of a graph, as the rules of the fused variants read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fitserve_exporters.candidate.candidate import Array


def array_of(value: Any) -> Array | None:
    """Gives the array of a value that is constant; None for any other."""
    constant = ir.convenience.get_const_tensor(value)
    return None if constant is None else np.asarray(constant.numpy())


def scalar_of(value: Any) -> float | None:
    """Gives the number of a constant of one element; None for any other value."""
    array = array_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
