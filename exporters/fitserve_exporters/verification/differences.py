"""How far two answers lie apart: figures of one output, in float64, and whether each element is within its bound.

Sentinels (masks, NaN, infinities) are compared with torch's in ULPs; the figures are those of the other elements.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fitserve_exporters.candidate.candidate import Array
from fitserve_exporters.verification.tolerance import SENTINEL_ULPS, Bounds, is_exact

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
        tolerance: Largest bound of any element.
        worst_error: |onnxruntime - float64| of the element that is nearest to its bound, or furthest beyond.
        worst_tolerance: Its bound.
        worst_feature: Its feature.
        beyond_count: Elements beyond their bounds.
        sentinel_count: Elements that are compared in ULPs.
        sentinel_mismatch_count: Of these, and of numbers that are NaN or infinite in ONNX Runtime alone, those that
            are not torch's.
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
    worst_error: float
    worst_tolerance: float
    worst_feature: int
    beyond_count: int
    sentinel_count: int
    sentinel_mismatch_count: int

    @property
    def is_within(self) -> bool:
        """Whether every element is within its bound."""
        return self.sentinel_mismatch_count == 0 and self.beyond_count == 0

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as the manifest writes them; all are finite."""
        return asdict(self)


def differences(ort: Array, torch_fp32: Array, torch_fp64: Array, bounds: Bounds) -> Differences:
    """Computes the figures of one output.

    Args:
        ort: ONNX Runtime's answer, any shape.
        torch_fp32: Eager torch's answer, same shape.
        torch_fp64: The same in float64.
        bounds: Of each element.

    Raises:
        ValueError: the shapes differ.
    """
    if not ort.shape == torch_fp32.shape == torch_fp64.shape:
        raise ValueError(f"expected shape {torch_fp32.shape}, got {ort.shape}")
    if torch_fp32.dtype.kind not in "biuf":  # text: each element is the same or is not
        ort, torch_fp32 = np.asarray(ort != torch_fp32, np.int64), np.zeros(ort.shape, np.int64)
        torch_fp64 = torch_fp32
    wide = [array.reshape(-1).astype(np.float64) for array in (ort, torch_fp32, torch_fp64)]
    ulps = _ulps(ort, torch_fp32).reshape(-1)
    is_number = ~bounds.is_sentinel & np.logical_and.reduce([np.isfinite(array) for array in wide])
    served, eager, exact = (array[is_number] for array in wide)
    allowed, feature = bounds.allowed[is_number], bounds.feature[is_number]
    gaps, errors, units = _gaps(served, eager), _gaps(served, exact), ulps[is_number]
    is_beyond = errors > allowed
    if is_exact(torch_fp32) and not allowed.any():
        is_beyond = units > 0  # float64 does not tell integers from 2^53 on apart
    worst = _worst(errors, allowed, is_beyond)
    return Differences(
        element_count=int(ort.size),
        max_abs_diff=_max(gaps),
        mean_abs_diff=_mean(gaps),
        max_rel_diff=_max(_relative(gaps, eager)),
        max_ulps=int(units.max(initial=0)),
        mean_ulps=_mean(units),
        ort_max_error=_max(errors),
        torch_max_error=_max(_gaps(eager, exact)),
        largest=_max(np.abs(exact)),
        tolerance=_max(allowed),
        worst_error=float(errors[worst]) if errors.size else 0.0,
        worst_tolerance=float(allowed[worst]) if errors.size else 0.0,
        worst_feature=int(feature[worst]) if errors.size else 0,
        beyond_count=int(is_beyond.sum()),
        sentinel_count=int(bounds.is_sentinel.sum()),
        sentinel_mismatch_count=_mismatch_count(wide[0][~is_number], wide[1][~is_number], ulps[~is_number]),
    )


def _worst(errors: Array, allowed: Array, is_beyond: Array) -> int:
    if not errors.size:
        return 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(allowed > 0, errors / allowed, np.where(is_beyond, np.inf, 0.0))
    return int(share.argmax())


def _gaps(left: Array, right: Array) -> Array:
    """Computes |left - right| of finite arrays; where that is beyond float64 it is the largest number there is."""
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(np.abs(left - right), _LARGEST))


def _relative(gaps: Array, values: Array) -> Array:
    is_nonzero = values != 0
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(gaps[is_nonzero] / np.abs(values[is_nonzero]), _LARGEST))


def _mismatch_count(left: Array, right: Array, ulps: Array) -> int:
    is_same = (left == right) | (np.isnan(left) & np.isnan(right))
    is_near = np.isfinite(left) & np.isfinite(right) & (ulps <= SENTINEL_ULPS)
    return int((~(is_same | is_near)).sum())


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
