"""How far two answers lie apart: figures of one output, in float64.

Non-finite values are compared by place and value; the figures are those of the rest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fitserve_exporters.candidate.candidate import Array, Tolerance

_LARGEST: Final = np.finfo(np.float64).max
_INTEGER_OF_SIZE: Final = {2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True, slots=True)
class Differences:
    """Figures of one output over some examples.

    Args:
        element_count: Elements compared.
        max_abs_diff: max|onnxruntime - torch|, both as served.
        mean_abs_diff: mean|onnxruntime - torch|.
        max_rel_diff: max(|onnxruntime - torch| / |torch|) where torch is not 0.
        max_ulps: Largest distance in units in the last place of the output's own dtype; 0 for integers that agree.
        mean_ulps: Mean of that distance.
        ort_max_error: max|onnxruntime - float64|.
        torch_max_error: max|torch - float64|.
        largest: max|float64|.
        tolerance: What `ort_max_error` is to be held against.
        nonfinite_mismatch_count: Elements where NaN or an infinity is not the same on both sides.
    """

    element_count: int
    max_abs_diff: float
    mean_abs_diff: float
    max_rel_diff: float
    max_ulps: int
    mean_ulps: float
    ort_max_error: float
    torch_max_error: float
    largest: float
    tolerance: float
    nonfinite_mismatch_count: int

    @property
    def is_within(self) -> bool:
        """Whether the output is within its tolerance."""
        return self.nonfinite_mismatch_count == 0 and self.ort_max_error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Gives the figures as the manifest writes them; all are finite."""
        return asdict(self)


def differences(ort: Array, torch_fp32: Array, torch_fp64: Array, tolerance: Tolerance) -> Differences:
    """Computes the figures of one output.

    Args:
        ort: ONNX Runtime's answer, any shape.
        torch_fp32: Eager torch's answer, same shape.
        torch_fp64: The same in float64.
        tolerance: How the tolerance is computed.

    Raises:
        ValueError: the shapes differ.
    """
    if not ort.shape == torch_fp32.shape == torch_fp64.shape:
        raise ValueError(f"expected shape {torch_fp32.shape}, got {ort.shape}")
    wide = [array.astype(np.float64) for array in (ort, torch_fp32, torch_fp64)]
    is_finite = np.logical_and.reduce([np.isfinite(array) for array in wide])
    served, eager, exact = (array[is_finite] for array in wide)
    gaps, ulps = _gaps(served, eager), _ulps(ort, torch_fp32)[is_finite]
    torch_error, largest = _max(_gaps(eager, exact)), _max(np.abs(exact))
    return Differences(
        element_count=int(ort.size),
        max_abs_diff=_max(gaps),
        mean_abs_diff=_mean(gaps),
        max_rel_diff=_max(_relative(gaps, eager)),
        max_ulps=int(ulps.max(initial=0)),
        mean_ulps=_mean(ulps),
        ort_max_error=_max(_gaps(served, exact)),
        torch_max_error=torch_error,
        largest=largest,
        tolerance=tolerance.of(torch_error, largest),
        nonfinite_mismatch_count=_mismatch_count(wide[0][~is_finite], wide[1][~is_finite]),
    )


def _gaps(left: Array, right: Array) -> Array:
    """Computes |left - right| of finite arrays; where that is beyond float64 it is the largest number there is."""
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(np.abs(left - right), _LARGEST))


def _relative(gaps: Array, values: Array) -> Array:
    is_nonzero = values != 0
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(gaps[is_nonzero] / np.abs(values[is_nonzero]), _LARGEST))


def _mismatch_count(left: Array, right: Array) -> int:
    is_same = (left == right) | (np.isnan(left) & np.isnan(right))
    return int((~is_same).sum())


def _ulps(left: Array, right: Array) -> Array:
    """Counts the floats that lie between two arrays of one dtype; for other dtypes 0 where they are equal, else 1."""
    if left.dtype != right.dtype or left.dtype.kind != "f":
        return np.asarray(left != right, np.uint64)
    integer = _INTEGER_OF_SIZE[left.dtype.itemsize]
    one, other = _ordered(left.view(integer)), _ordered(right.view(integer))
    # The distance of two float64 of different sign may need all 64 bits: the subtraction wraps into just these.
    return np.asarray((np.maximum(one, other) - np.minimum(one, other)).view(np.uint64))


def _ordered(bits: Array) -> Array:
    """Maps float bit patterns to integers in the order of the floats; -0.0 and 0.0 are the same integer."""
    wide = bits.astype(np.int64)
    return np.where(wide < 0, np.int64(np.iinfo(bits.dtype).min) - wide, wide)


def _max(values: Array) -> float:
    return float(values.max(initial=0.0))


def _mean(values: Array) -> float:
    """Scales before it sums: a sum of the largest numbers would overflow."""
    return float((values / max(values.size, 1)).sum())
