"""Weights that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from onnx import TensorProto, numpy_helper

from fitserve_exporters.lint.findings import Finding, Level
from fitserve_exporters.lint.graphs import OnnxFile, all_tensors

_FLOATS: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def weight_findings(file: OnnxFile) -> Iterator[Finding]:
    """Looks for NaN, which no answer survives, and infinities, which masks may hold on purpose."""
    for tensor in all_tensors(file.model):
        if tensor.data_type not in _FLOATS:
            continue
        values = numpy_helper.to_array(tensor, base_dir=str(file.path.parent))
        nan_count, infinity_count = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        name = tensor.name or "without a name"
        if nan_count:
            message = f"tensor '{name}': expected numbers, got NaN in {nan_count:,} of {values.size:,} elements"
            yield Finding(Level.ERROR, "weights", message)
        if infinity_count:
            message = f"tensor '{name}': {infinity_count:,} of {values.size:,} elements are infinite"
            yield Finding(Level.WARNING, "weights", message)
