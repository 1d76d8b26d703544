"""How far each element of an output may lie from float64: judged by its own rounding and the scale of its own feature.

The largest value of an output says nothing about its small columns, and one masked -1e9 would hide any fault. So each
element has its own bound, see FORMULA, and sentinels (masks, infinities, NaN) have none: they are compared in ULPs.
Power: tests/slow/test_proof_power.py draws 30 faults that move an element by more than 1e-3 of its feature's scale, all
refused, and publishes 30 correct architectures.

Shapes: B examples, F features, N elements of one feature, S any further axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from fitserve_exporters.candidate.candidate import Array, Tolerance

FORMULA: Final = (
    "|onnxruntime - float64| <= max(factor * |torch - float64|, factor * rounding, rtol * |float64|, rtol * scale, "
    "atol) for every element; rounding: 99 % quantile of |torch - float64| over the element's feature; scale: root "
    "mean square of float64 over it; a feature is an index of axis 1 of (B, C, H, W), of the last axis of any other "
    "shape; an element outside also gets 2 * factor * its move when weights and inputs move by one epsilon"
)
"""What is accepted, for the manifest."""

SENTINEL_ULPS: Final = 4
"""Masked values, infinities and the largest numbers may differ by so many units in the last place from torch's."""

ROUNDING_QUANTILE: Final = 0.99
"""A maximum would let one element at which torch rounds to another step (round, argmax) loosen its whole feature."""

_MOST_ROUNDINGS: Final = 100_000
"""Elements of a feature, of one batch, that the quantile is taken over; the others are skipped evenly."""

_LEAST_MASK: Final = 1e4
_STANDS_OUT: Final = 1e3
"""A round number is a mask if it is so many times the scale of the rest of its feature."""

_LARGEST: Final = np.finfo(np.float64).max
_LARGEST_BFLOAT16: Final = 3.3895313892515355e38
_EXTREMES: Final = (*(float(np.finfo(dtype).max) for dtype in (np.float16, np.float32, np.float64)), _LARGEST_BFLOAT16)


@dataclass(frozen=True, slots=True)
class Features:
    """What torch says of the features of one output, over a sample.

    Args:
        scale: (F): root mean square of the float64 values that are no sentinels; 0 where there are none.
        rounding: (F): ROUNDING_QUANTILE of |torch - float64| of the same elements.
    """

    scale: Array
    rounding: Array


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is asked of each element of some answers, flattened.

    Args:
        allowed: (N): largest |onnxruntime - float64|; 0 asks for the same value.
        is_sentinel: (N): compared with torch's value in ULPs instead.
        feature: (N): INT64, the feature of the element.
    """

    allowed: Array
    is_sentinel: Array
    feature: Array

    def widened(self, noise: Array, factor: float) -> Bounds:
        """Returns bounds that also allow `factor` times the condition (N) of each element, see `Noise`."""
        return Bounds(np.maximum(self.allowed, factor * noise), self.is_sentinel, self.feature)


def is_exact(array: Array) -> bool:
    """Tells whether an output is compared for equality: integers, booleans and strings."""
    return array.dtype.kind != "f"


def by_feature(array: Array) -> Array:
    """Returns an output (B, S) as (N, F): one column per feature; a view where numpy can."""
    if array.ndim < 2:
        return array.reshape(-1, 1)
    ordered = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
    return ordered.reshape(-1, ordered.shape[-1])


def features_of(answers: Iterable[tuple[Array, Array]]) -> Features:
    """Measures the features of one output.

    Args:
        answers: Of each batch torch's answer and the float64 one, (B, S); free axes may differ in size.
    """
    batches = [(by_feature(eager), by_feature(exact.astype(np.float64))) for eager, exact in answers]
    count = max(exact.shape[1] for _, exact in batches)
    is_mask = _masks(batches, count)
    ordinary = [np.where(mask, np.nan, exact) for (_, exact), mask in zip(batches, is_mask, strict=True)]
    gaps = [_gaps(eager.astype(np.float64), exact) for (eager, _), exact in zip(batches, ordinary, strict=True)]
    return Features(_root_mean_square(ordinary, count), _quantile(gaps, count))


def bounds_of(eager: Array, exact: Array, tolerance: Tolerance, features: Features | None = None) -> Bounds:
    """Computes the bound of each element of one answer.

    Args:
        eager: Torch's answer (B, S).
        exact: The same in float64.
        tolerance: The factors.
        features: Of the whole sample; those of this answer alone where it is None.
    """
    shape = by_feature(eager).shape
    index = _as_before(np.broadcast_to(np.arange(shape[1]), shape), eager)
    if is_exact(eager):
        allowed = tolerance.atol if tolerance.is_measured else 0.0
        return Bounds(np.full(eager.size, allowed), np.zeros(eager.size, bool), index)
    known = features or features_of([(eager, exact)])
    wide, values = eager.astype(np.float64).reshape(-1), exact.astype(np.float64).reshape(-1)
    is_sentinel = _is_special(eager).reshape(-1) & (np.abs(wide) >= _STANDS_OUT * known.scale[index])
    is_sentinel |= ~(np.isfinite(wide) & np.isfinite(values))
    least = max(tolerance.atol, float(np.finfo(eager.dtype).tiny))
    with np.errstate(over="ignore", invalid="ignore"):
        allowed = np.maximum.reduce(
            [
                tolerance.factor * _gaps(wide, values),
                tolerance.factor * known.rounding[index],
                tolerance.rtol * np.maximum(np.abs(values), known.scale[index]),
                np.full(eager.size, least if tolerance.rtol or tolerance.atol else 0.0),
            ]
        )
    return Bounds(np.where(is_sentinel, 0.0, np.minimum(allowed, _LARGEST)), is_sentinel, index)


def joined_bounds(parts: Iterable[Bounds]) -> Bounds:
    """Returns the bounds of several answers one after the other."""
    found = list(parts)
    return Bounds(
        np.concatenate([part.allowed for part in found]),
        np.concatenate([part.is_sentinel for part in found]),
        np.concatenate([part.feature for part in found]),
    )


def _as_before(columns: Array, like: Array) -> Array:
    """Undoes `by_feature` and flattens: (N, F) to the order of the elements of `like`."""
    if like.ndim == 4:
        batch, channels, height, width = like.shape
        return np.moveaxis(columns.reshape(batch, height, width, channels), -1, 1).reshape(-1)
    return columns.reshape(-1)


def _gaps(left: Array, right: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.minimum(np.abs(left - right), _LARGEST))


def _is_special(eager: Array) -> Array:
    """Finds values that people mask with: digit · 10^k and 2^k from 1e4 on, and the largest number of a dtype."""
    wide = np.abs(eager.astype(np.float64))
    if not (is_large := ~(wide < _LEAST_MASK)).any():
        return is_large
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        decade = np.floor(np.log10(np.where(wide > 0, wide, 1.0)))
        ten = np.power(10.0, decade)
        decimal = np.round(wide / ten) * ten
        binary = np.exp2(np.round(np.log2(np.where(wide > 0, wide, 1.0))))
        near = SENTINEL_ULPS * np.finfo(eager.dtype).eps * wide
        is_round = (np.abs(wide - decimal) <= near) | (np.abs(wide - binary) <= near)
        is_extreme = np.logical_or.reduce([np.abs(wide - extreme) <= near for extreme in _EXTREMES])
    return np.asarray((wide >= _LEAST_MASK) & (is_round | is_extreme) | ~np.isfinite(wide))


def _masks(batches: list[tuple[Array, Array]], count: int) -> list[Array]:
    """Finds the elements of each batch, (N, F), that take no part in the scale of their feature."""
    special = [_is_special(eager) | ~np.isfinite(exact) for eager, exact in batches]
    rest = [np.where(is_it, np.nan, exact) for is_it, (_, exact) in zip(special, batches, strict=True)]
    scale = _root_mean_square(rest, count)
    return [
        is_it & ~(np.isfinite(exact) & (np.abs(eager.astype(np.float64)) < _STANDS_OUT * scale[: exact.shape[1]]))
        for is_it, (eager, exact) in zip(special, batches, strict=True)
    ]


def _root_mean_square(columns: list[Array], count: int) -> Array:
    """Computes it of each feature over all batches; NaN elements do not count, 0 where no others are."""
    total, number, largest = np.zeros(count), np.zeros(count), np.zeros(count)
    for part in columns:
        width = part.shape[1]
        largest[:width] = np.maximum(largest[:width], np.nan_to_num(np.abs(part), nan=0.0).max(axis=0, initial=0.0))
    unit = np.where(largest > 0, largest, 1.0)  # squares of the largest numbers would overflow
    for part in columns:
        width = part.shape[1]
        total[:width] += np.nansum((part / unit[:width]) ** 2, axis=0)
        number[:width] += np.isfinite(part).sum(axis=0)
    return np.asarray(unit * np.sqrt(total / np.maximum(number, 1)))


def _quantile(columns: list[Array], count: int) -> Array:
    """Computes ROUNDING_QUANTILE of each feature, the higher of two elements; NaN elements do not count."""
    thinned = [part[:: max(1, len(part) // _MOST_ROUNDINGS)] for part in columns]
    padded = [np.pad(part, ((0, 0), (0, count - part.shape[1])), constant_values=np.nan) for part in thinned]
    ordered = np.sort(np.concatenate([*padded, np.full((1, count), np.nan)]), axis=0)  # NaN last, at least one row
    number = np.isfinite(ordered).sum(axis=0)
    place = np.ceil(ROUNDING_QUANTILE * np.maximum(number - 1, 0)).astype(np.int64)
    found = np.take_along_axis(ordered, place[None], axis=0)[0]
    return np.asarray(np.where(number > 0, found, 0.0))
