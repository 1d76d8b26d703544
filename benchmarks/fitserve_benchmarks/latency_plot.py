"""A latency result as plots: time of a call against batch size, and what each scenario gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fitserve_benchmarks.contestants import DEVICE_TO_DEVICE
from fitserve_benchmarks.quantities import threads_text
from fitserve_benchmarks.rows import LatencyResult, Row
from fitserve_benchmarks.scenario_report import FIGURES, figure_text
from fitserve_benchmarks.scenario_rows import ScenarioRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAMILIES: Final = (
    ("torch eager", ("#8a8a8a", "#4d4d4d")),
    ("torch.compile", ("#ff7f0e", "#d95f02", "#a63603", "#fdae6b")),
    ("AOTInductor", ("#9467bd", "#6a3d9a")),
    ("ONNX Runtime", ("#1f77b4", "#2ca02c", "#17becf", "#08519c", "#74c476", "#6baed6", "#006d2c", "#9ecae1")),
)
"""Colours of a family of contestants, in the order in which its members appear."""

_OTHERS: Final = ("#e377c2", "#bcbd22", "#8c564b")
_MARKERS: Final = {"cpu": "o", "cuda": "s"}


def plot_latency(result: LatencyResult, path: Path) -> None:
    """Writes the times as SVG, a panel for each thread count; device to device is dashed.

    Args:
        result: Rows; skipped ones are left out.
        path: File to write; its folder is made.
    """
    from matplotlib.figure import Figure

    measured = [row for row in result.rows if row.skipped is None]
    thread_counts = list(dict.fromkeys(row.thread_count for row in measured))
    colours = colours_of([row.contestant for row in measured])
    figure = Figure(figsize=(3.8 + 4.6 * max(1, len(thread_counts)), 4.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(thread_counts)), squeeze=False, sharey=True)[0]
    for panel, count in zip(panels, thread_counts, strict=False):
        _draw(panel, [row for row in measured if row.thread_count == count], colours)
        panel.set_title(f"{result.model}, {threads_text(count)}")
    panels[0].set_ylabel("median time of a call (ms), 95 % interval")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg")


def plot_scenarios(result: LatencyResult, path: Path) -> None:
    """Writes the scenarios as SVG: a panel for each, a bar for each contestant and thread count with its interval.

    Args:
        result: With at least one scenario that was measured.
        path: File to write; its folder is made.
    """
    from matplotlib.figure import Figure

    measured = [row for row in result.scenarios if row.figure is not None]
    names = list(dict.fromkeys(row.scenario for row in measured))
    colours = colours_of([row.contestant for row in measured])
    longest = max(sum(row.scenario == name for row in measured) for name in names)
    columns = min(2, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(5.5 * columns, lines * (1.0 + 0.32 * longest)), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        _draw_bars(panel, [row for row in measured if row.scenario == name], colours, longest)
        panel.set_title(f"{name}: {_axis_text(name)}", fontsize="medium")
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.suptitle(f"{result.model} version {result.version}, 95 % intervals")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg")


def colours_of(contestants: Sequence[str]) -> Mapping[str, str]:
    """Gives each contestant a colour of its family, in order of appearance; the last repeats where there are more."""
    taken: dict[tuple[str, ...], int] = {}
    colours: dict[str, str] = {}
    for name in dict.fromkeys(contestants):
        family = next((tones for start, tones in _FAMILIES if name.startswith(start)), _OTHERS)
        index = taken.get(family, 0)
        colours[name] = family[min(index, len(family) - 1)]
        taken[family] = index + 1
    return colours


def _draw(panel: Axes, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    for label in dict.fromkeys(row.label for row in rows):
        line = [row for row in rows if row.label == label]
        medians = [row.median_s for row in line]
        panel.errorbar(
            [row.batch_size for row in line],
            [1e3 * median.estimate for median in medians],
            yerr=[
                [1e3 * (median.estimate - median.low) for median in medians],
                [1e3 * (median.high - median.estimate) for median in medians],
            ],
            label=label,
            color=colours[line[0].contestant],
            marker=_MARKERS.get(line[0].device, "x"),
            linestyle="--" if line[0].transfer == DEVICE_TO_DEVICE else "-",
            capsize=2,
            markersize=4,
        )
    panel.set(xscale="log", yscale="log", xlabel="batch size (examples)")
    sizes = sorted({row.batch_size for row in rows})
    panel.set_xticks(sizes, labels=[str(size) for size in sizes])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(True, alpha=0.3)


def _draw_bars(panel: Axes, rows: Sequence[ScenarioRow], colours: Mapping[str, str], places: int) -> None:
    """Draws bars in as many places as the fullest panel has, so that all are of one height."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    scale = 1.0 if rows[0].is_rate else 1e3
    for place, row in enumerate(rows):
        figure = row.measured
        errors = [[scale * (figure.estimate - figure.low)], [scale * (figure.high - figure.estimate)]]
        colour = colours[row.contestant]
        panel.barh(place, scale * figure.estimate, xerr=errors, color=colour, alpha=0.85, capsize=2)
        mark = " unstable" if row.is_unstable else ""
        panel.annotate(
            f" {figure_text(row).split(' (')[0]}{mark}", (scale * figure.high, place), va="center", fontsize="x-small"
        )
    labels = [f"{row.label}, {threads_text(row.thread_count)}" for row in rows]
    panel.set_yticks(range(len(rows)), labels=labels, fontsize="x-small")
    panel.set_ylim(places - 0.4, -0.6)
    panel.set_xlim(0, 1.5 * max(scale * row.measured.high for row in rows))
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.tick_params(axis="x", labelsize="x-small")
    panel.grid(True, axis="x", alpha=0.3)


def _axis_text(scenario: str) -> str:
    figure = FIGURES[scenario]
    return figure if "/s" in figure else f"{figure} (ms)"
