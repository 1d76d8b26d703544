"""Curves of a run: thinned for the manifest, drawn as SVG for the card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from fitserve_exporters.card_html import Markup, tag
from fitserve_training import rundir

Curve: TypeAlias = list[tuple[float, float]]
"""(epoch, value), ascending."""

METRICS: Final = ("loss", "accuracy")
SIDES: Final = ("train", "test")
MAX_POINTS: Final = 120

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 30
_LOG_RATIO: Final = 20
"""Values that span more than this are drawn on a logarithmic axis."""


def read_curves(run_dir: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Reads a run's curves for the manifest: metric to side to [[epoch, value], …], at most MAX_POINTS each.

    Training values come several to an epoch where the run has them so.
    """
    rows, points = rundir.read_lines(run_dir / rundir.METRICS), rundir.read_lines(run_dir / rundir.CURVE)
    sources = {"train": points or rows, "test": rows}
    read = {
        metric: {side: _thinned(_values(sources[side], f"{side}_{metric}")) for side in SIDES} for metric in METRICS
    }
    return {metric: found for metric, curves in read.items() if (found := _without_empty(curves))}


def curves_of(training: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """Finds what `read_curves` wrote in a manifest's training record; what is not of that form is left out."""
    written = training.get("curves")
    found = {}
    for metric, sides in written.items() if isinstance(written, Mapping) else ():
        curves = {str(side): _points(values) for side, values in sides.items()} if isinstance(sides, Mapping) else {}
        drawable = {side: curve for side, curve in curves.items() if len(curve) > 1}
        if drawable:
            found[str(metric)] = drawable
    return found


def draw(metric: str, curves: Mapping[str, Curve]) -> Markup:
    """Draws the curves of one metric.

    Args:
        metric: What the values are.
        curves: Side to its curve, at least one of them, each of at least two points.
    """
    frame = _Frame.around([point for curve in curves.values() for point in curve])
    lines = [
        tag("polyline", class_=f"curve {_style(index)}", points=" ".join(f"{x},{y}" for x, y in map(frame.at, curve)))
        for index, curve in enumerate(curves.values())
    ]
    legend = [
        tag("span", tag("i", class_=f"key {_style(index)}"), f"{side}, last {curve[-1][1]:.4g}")
        for index, (side, curve) in enumerate(curves.items())
    ]
    label = f"{metric} over epochs: " + ", ".join(
        f"{side} ends at {curve[-1][1]:.4g}" for side, curve in curves.items()
    )
    picture = tag(
        "svg", tag("title", label), frame.grid(), lines, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", class_="chart"
    )
    caption = tag("figcaption", tag("strong", metric), " by epoch", tag("span", legend, class_="legend"))
    return tag("figure", caption, picture)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps epochs and values to the picture."""

    first: float
    last: float
    low: float
    high: float
    is_log: bool

    @staticmethod
    def around(points: Sequence[tuple[float, float]]) -> _Frame:
        values = [value for _, value in points]
        low, high = min(values), max(values)
        is_log = low > 0 and high > _LOG_RATIO * low
        if is_log:
            low, high = math.log10(low), math.log10(high)
        margin = (high - low) * 0.04 or max(abs(high), 1e-9) * 0.1
        epochs = [epoch for epoch, _ in points]
        first = min(epochs)
        span = max(max(epochs) - first, 1e-6 * max(abs(first), 1.0))
        return _Frame(first, first + span, low - margin, high + margin, is_log)

    def at(self, point: tuple[float, float]) -> tuple[str, str]:
        value = math.log10(point[1]) if self.is_log else point[1]
        return f"{self._x(point[0]):.1f}", f"{self._y(value):.1f}"

    def grid(self) -> list[Markup]:
        drawn = []
        for epoch in ticks(self.first, self.last, 6):
            x = f"{self._x(epoch):.1f}"
            drawn.append(tag("text", f"{epoch:g}", x=x, y=_HEIGHT - 10, text_anchor="middle"))
        for value in self._value_ticks():
            y = f"{self._y(value):.1f}"
            written = f"{10**value if self.is_log else value:.4g}"
            drawn.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
            drawn.append(tag("text", written, x=_LEFT - 8, y=y, text_anchor="end", dominant_baseline="middle"))
        return drawn

    def _value_ticks(self) -> list[float]:
        if not self.is_log:
            return ticks(self.low, self.high, 5)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        marks = [decade + math.log10(step) for decade in decades for step in steps]
        return [mark for mark in marks if self.low <= mark <= self.high]

    def _x(self, epoch: float) -> float:
        return _LEFT + (epoch - self.first) / (self.last - self.first) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Gives round numbers in low..high, about `count` of them, a step of 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * power for factor in (1, 2, 5, 10)]
    # A step that is longer than the whole may have no multiple inside.
    step = next((step for step in steps if raw * 0.999 <= step <= high - low), steps[0])
    step = step if step >= raw * 0.999 else max(step for step in steps if step <= high - low)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _style(index: int) -> str:
    return f"side-{min(index, len(SIDES) - 1)}"


def _values(rows: Iterable[Mapping[str, Any]], key: str) -> list[list[float]]:
    return [[row["epoch"], row[key]] for row in rows if row.get(key) is not None]


def _thinned(values: list[list[float]]) -> list[list[float]]:
    """Keeps the first, the last and evenly spaced ones between them."""
    if len(values) <= MAX_POINTS:
        return values
    return [values[round(index * (len(values) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def _without_empty(curves: Mapping[str, list[list[float]]]) -> dict[str, list[list[float]]]:
    return {side: values for side, values in curves.items() if values}


def _points(values: Any) -> Curve:
    pairs = values if isinstance(values, list) else []
    return [
        (float(pair[0]), float(pair[1]))
        for pair in pairs
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_finite, pair))
    ]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
