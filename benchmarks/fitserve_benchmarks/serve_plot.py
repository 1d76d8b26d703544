"""The servers' benchmark as a plot: requests/s against the 99th percentile of latency, a line for each contestant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fitserve_benchmarks.serve_inprocess import IN_PROCESS
from fitserve_benchmarks.serve_large import LARGE
from fitserve_benchmarks.serve_rows import ServeResult, ServeRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_serve(result: ServeResult, path: Path) -> None:
    """Writes the plot as SVG, a panel for each model and batch size.

    Args:
        result: Rows; those without a 99th percentile are left out, and a panel where most servers of the model have
            none shows medians.
        path: File to write; its folder is made.
    """
    from matplotlib.figure import Figure

    measured = [row for row in result.rows if row.model != LARGE and row.contestant != IN_PROCESS]
    panels = [(key, list(rows)) for key, rows in groupby(measured, key=lambda row: (row.model, row.batch_size))]
    figure = Figure(figsize=(1.5 + 5.5 * max(1, len(panels)), 5), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for panel, ((model, batch_size), rows) in zip(axes, panels, strict=False):
        _draw(panel, rows)
        panel.set_title(f"{model}, batch {batch_size}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(panel: Axes, rows: Sequence[ServeRow]) -> None:
    names = list(dict.fromkeys(row.contestant for row in rows))
    servers = {name for name in names if not name.startswith("echo")}
    has_p99 = 2 * len({row.contestant for row in rows if row.p99_s is not None} & servers) > len(servers)
    for name in names:
        points = [
            (1e3 * latency_s, row.requests_per_s, row.in_flight)
            for row in rows
            if row.contestant == name and (latency_s := row.p99_s if has_p99 else row.p50_s) is not None
        ]
        if not points:
            continue
        width = 2.5 if name.startswith("fitserve") else 1.0
        line = ":" if name.startswith("echo") else "-"
        latencies, rates, _ = zip(*points, strict=True)
        panel.plot(latencies, rates, line, marker="o", markersize=4, label=name, linewidth=width)
        for latency, rate, in_flight in points:
            panel.annotate(str(in_flight), (latency, rate), textcoords="offset points", xytext=(4, 4), fontsize=7)
    what = "99th percentile" if has_p99 else "median"
    panel.set(xscale="log", yscale="log", xlabel=f"{what} (ms); numbers: calls in flight", ylabel="requests/s")
    panel.grid(True, which="both", alpha=0.3)
    if panel.lines:
        panel.legend(fontsize=8)
