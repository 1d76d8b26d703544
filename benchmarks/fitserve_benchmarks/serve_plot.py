"""The servers' benchmark as a plot: requests/s against the 99th percentile of latency, a line for each contestant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fitserve_benchmarks.serve_inprocess import IN_PROCESS
from fitserve_benchmarks.serve_large import LARGE
from fitserve_benchmarks.serve_rows import ServeResult, ServeRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS: Final = "fitserve"
_ECHO: Final = "echo"
_COLOURS: Final = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"),
    *("#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#000000"),
)
_FAR: Final = 10.0
"""Echoes that answer so many times as much as the best server would squeeze the servers into a corner."""

_LEAST_SPAN: Final = 5.0
"""Of the axis of rates: a logarithmic axis of less makes much of little."""

_LABELLED_DECADES: Final = 2.0
"""Axes that span less have 1, 2 and 5 of each decade labelled, others its 1 alone."""


def plot_serve(result: ServeResult, path: Path) -> None:
    """Writes the plot as SVG, a panel for each model and batch size.

    Args:
        result: Rows; those without a 99th percentile are left out, and a panel where most servers of the model have
            none shows medians. Echoes that are far from every server are left out, too.
        path: File to write; its folder is made.
    """
    from matplotlib.figure import Figure

    measured = [row for row in result.rows if row.model != LARGE and row.contestant != IN_PROCESS]
    panels = [(key, list(rows)) for key, rows in groupby(measured, key=lambda row: (row.model, row.batch_size))]
    names = list(dict.fromkeys(row.contestant for row in measured))
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    columns = min(3, max(1, len(panels)))
    lines = -(-len(panels) // columns) or 1
    figure = Figure(figsize=(3.0 + 5.0 * columns, 4.6 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, ((model, batch_size), rows) in zip(axes, panels, strict=False):
        shown = _near(rows)
        _draw(panel, shown, colours)
        left_out = ", echoes beyond the frame" if len(shown) < len(rows) else ""
        panel.set_title(f"{model}, batch {batch_size}{left_out}", fontsize="medium")
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    pairs = [pair for panel in axes for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in pairs}
    ordered = [name for name in names if name in handles]
    figure.legend([handles[name] for name in ordered], ordered, loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _near(rows: Sequence[ServeRow]) -> list[ServeRow]:
    best = max((row.requests_per_s for row in rows if not row.contestant.startswith(_ECHO)), default=0.0)
    highest = max((row.requests_per_s for row in rows), default=0.0)
    return [row for row in rows if highest <= _FAR * best or not row.contestant.startswith(_ECHO) or not best]


def _draw(panel: Axes, rows: Sequence[ServeRow], colours: Mapping[str, str]) -> None:
    servers = {row.contestant for row in rows if not row.contestant.startswith(_ECHO)}
    has_p99 = 2 * len({row.contestant for row in rows if row.p99_s is not None} & servers) > len(servers)
    for name in dict.fromkeys(row.contestant for row in rows):
        points = [
            (1e3 * latency_s, row.requests_per_s, row.in_flight)
            for row in rows
            if row.contestant == name and (latency_s := row.p99_s if has_p99 else row.p50_s) is not None
        ]
        if points:
            _draw_line(panel, name, points, colours[name])
    what = "99th percentile of latency" if has_p99 else "median latency"
    panel.set(xscale="log", yscale="log", xlabel=f"{what} (ms); numbers: calls in flight", ylabel="requests/s")
    panel.grid(True, which="both", alpha=0.25)
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, high / _LEAST_SPAN), high)
    for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
        _label(axis, high / low)


def _draw_line(panel: Axes, name: str, points: Sequence[tuple[float, float, int]], colour: str) -> None:
    """Draws a contestant; ours have their calls in flight written beside each point, the others at their ends."""
    is_ours = name.startswith(_OURS)
    line = ":" if name.startswith(_ECHO) else "-"
    latencies, rates, _ = zip(*points, strict=True)
    panel.plot(
        latencies,
        rates,
        line,
        marker="o",
        markersize=5 if is_ours else 3,
        label=name,
        color=colour,
        linewidth=2.5 if is_ours else 1.0,
        zorder=3 if is_ours else 2,
    )
    for latency, rate, in_flight in points if is_ours else (points[0], points[-1]):
        panel.annotate(
            str(in_flight), (latency, rate), textcoords="offset points", xytext=(4, 4), fontsize=7, color=colour
        )


def _label(axis: object, span: float) -> None:
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    assert isinstance(axis, Axis)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 10**_LABELLED_DECADES else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
