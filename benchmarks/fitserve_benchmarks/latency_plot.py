"""A latency result as a plot: median time of a call against batch size, one panel for each thread count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fitserve_benchmarks.rows import LatencyResult, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = {"torch eager": "tab:gray", "torch.compile": "tab:orange", "ONNX Runtime": "tab:blue"}
_MARKERS = {"cpu": "o", "cuda": "s"}


def plot_latency(result: LatencyResult, path: Path) -> None:
    """Writes the plot as SVG.

    Args:
        result: Rows; skipped ones are left out.
        path: File to write; its folder is made.
    """
    from matplotlib.figure import Figure

    measured = [row for row in result.rows if row.skipped is None]
    thread_counts = list(dict.fromkeys(row.thread_count for row in measured))
    figure = Figure(figsize=(1.5 + 5.0 * max(1, len(thread_counts)), 4.5), layout="constrained")
    panels = figure.subplots(1, max(1, len(thread_counts)), squeeze=False, sharey=True)[0]
    for panel, count in zip(panels, thread_counts, strict=False):
        _draw(panel, [row for row in measured if row.thread_count == count])
        panel.set_title(f"{result.model}, {count} thread{'s' if count > 1 else ''}")
    panels[0].set_ylabel("median time of a call (ms), 95 % interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg")


def _draw(panel: Axes, rows: Sequence[Row]) -> None:
    for label in dict.fromkeys(row.label for row in rows):
        line = [row for row in rows if row.label == label]
        medians = [row.median_s for row in line]
        estimates = [1e3 * median.estimate for median in medians]
        below = [1e3 * (median.estimate - median.low) for median in medians]
        above = [1e3 * (median.high - median.estimate) for median in medians]
        panel.errorbar(
            [row.batch_size for row in line],
            estimates,
            yerr=[below, above],
            label=label,
            color=_LINES.get(line[0].contestant),
            marker=_MARKERS.get(line[0].device, "x"),
            capsize=2,
        )
    panel.set(xscale="log", yscale="log", xlabel="batch size (examples)")
    sizes = sorted({row.batch_size for row in rows})
    panel.set_xticks(sizes, labels=[str(size) for size in sizes])
    panel.minorticks_off()
    panel.grid(True, alpha=0.3)
    panel.legend()
