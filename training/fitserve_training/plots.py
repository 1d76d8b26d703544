"""Pictures of a run as SVG, the same bytes for the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_SIZE_INCHES = (6.4, 4.0)


@contextmanager
def save_figure(path: Path) -> Iterator[Any]:
    """Gives axes to draw on and saves them as SVG to `path` afterwards."""
    with mpl.rc_context({"svg.hashsalt": "fitserve", "font.size": 10}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        yield axes
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_curves(rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws loss.svg, and accuracy.svg where there is accuracy.

    Args:
        rows: Lines of metrics.jsonl; the curves of the validation and held-out examples come from them.
        points: Lines of curve.jsonl, several per epoch; the training curve comes from them.
        folder: Where the files go.
    """
    drawn = []
    for metric in ("loss", "accuracy"):
        curves = {"train": _curve(points or rows, f"train_{metric}")}
        curves |= {name: _curve(rows, f"{key}_{metric}") for name, key in (("validation", "val"), ("test", "test"))}
        if any(curves.values()):
            drawn.append(folder / f"{metric}.svg")
            _draw(curves, metric, drawn[-1])
    return drawn


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def _draw(curves: Mapping[str, list[tuple[float, float]]], metric: str, path: Path) -> None:
    with save_figure(path) as axes:
        for name, curve in curves.items():
            if curve:
                axes.plot(*zip(*curve, strict=True), marker="o" if len(curve) < 30 else "", markersize=3, label=name)
        values = [value for curve in curves.values() for _, value in curve]
        if metric == "loss" and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric)
        axes.legend()
