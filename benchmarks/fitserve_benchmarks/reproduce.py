"""Holds the recipes against their published figures on the real data, over several seeds."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.programs import program_path, run_program

_SCHEMA_VERSION: Final = 1

SEEDED: Final = (("lenet", "fashion_mnist"), ("softmax", "fashion_mnist"), ("linreg", "auto"))
"""Recipes that draw random numbers, with the data that their published bands belong to."""

THERMOMETER: Final = "thermometer"
DIVERGENCE_EPOCH: Final = 11
"""When gradient descent on the raw readings at lr 1e-2 has an infinite loss."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one run beside its published band.

    Args:
        recipe: Recipe name.
        seed: Seed of the run.
        metric: What was measured.
        value: What came out; None where nothing did.
        low: Smallest value that is inside.
        high: Largest.
    """

    recipe: str
    seed: int
    metric: str
    value: float | None
    low: float
    high: float

    @property
    def is_inside(self) -> bool:
        """Tells whether the figure was reproduced."""
        return self.value is not None and self.low <= self.value <= self.high


def reproduce(runs: Path, seeds: Sequence[int], output_dir: Path) -> list[Figure]:
    """Trains every recipe with published figures and writes `reproduce.json`.

    Args:
        runs: Folder for the runs.
        seeds: Seeds of the recipes that draw random numbers.
        output_dir: Folder for the result.

    Raises:
        StepFailedError: a run failed; what it said is on the terminal.
    """
    figures = [figure for recipe, data in SEEDED for seed in seeds for figure in _seeded(runs, recipe, data, seed)]
    figures += [*_thermometer(runs), _divergence(runs)]
    rows = [{**asdict(figure), "is_inside": figure.is_inside} for figure in figures]
    document = {"schema_version": _SCHEMA_VERSION, "environment": describe_environment(), "figures": rows}
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "reproduce.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    return figures


def reproduction_table(figures: Sequence[Figure]) -> Table:
    """Makes the table of all figures."""
    table = Table(title="published figures", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("recipe", "seed", "figure", "value", "published", ""):
        table.add_column(heading, justify="right" if heading in ("seed", "value") else "left", no_wrap=True)
    for figure in figures:
        value = "none" if figure.value is None else f"{figure.value:.7g}"
        band = f"{figure.low:.7g} to {figure.high:.7g}"
        verdict = "inside" if figure.is_inside else "OUTSIDE"
        table.add_row(figure.recipe, str(figure.seed), figure.metric, value, band, verdict)
    return table


def divergence_epoch(output: str) -> int | None:
    """Finds the epoch at which a stopped run says that it was; None where it names none."""
    match = re.search(r"\bepoch (\d+)\b(?!/)", output)
    return None if match is None else int(match[1])


def _seeded(runs: Path, recipe: str, data: str, seed: int) -> Iterator[Figure]:
    run_dir = runs / f"{recipe}-{seed}"
    run_program("fitserve-train", recipe, "--data", data, "--seed", str(seed), "--run-dir", str(run_dir))
    yield from _published(run_dir)


def _thermometer(runs: Path) -> Iterator[Figure]:
    run_dir = runs / THERMOMETER
    run_program("fitserve-train", THERMOMETER, "--run-dir", str(run_dir))
    yield from _published(run_dir)


def _divergence(runs: Path) -> Figure:
    """On raw readings the same settings diverge, and the run says when, with exit code 1."""
    arguments = [THERMOMETER, "--set", "model.input_scale=1", "--run-dir", str(runs / f"{THERMOMETER}-raw")]
    print(f"\n$ fitserve-train {' '.join(arguments)}", flush=True)
    command = [program_path("fitserve-train"), *arguments]
    exit_code, output = run_child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = output.decode(errors="replace")
    print(text, end="")
    last_line = text.strip().rpartition("\n")[2]
    epoch = divergence_epoch(last_line) if exit_code == 1 else None
    return Figure(f"{THERMOMETER} (raw)", 0, "epoch stopped at", epoch, DIVERGENCE_EPOCH, DIVERGENCE_EPOCH)


def _published(run_dir: Path) -> Iterator[Figure]:
    summary = json.loads((run_dir / "summary.json").read_text())
    for band in summary["published"]:
        bounds = (band["low"], band["high"])
        yield Figure(summary["recipe"], summary["seed"], band["metric"], band["value"], *bounds)
