"""Every published recipe after the other, and one table: what is published, what was reached, inside or not.

    python -m fitserve_training.all_recipes --runs runs [--data-dir DIR] [--device DEVICE] [--table-only]

Each recipe trains into RUNS/RECIPE. Exit code 0: all bands that apply hold; 1: one does not, or a run was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fitserve_training import rundir
from fitserve_training.catalogue import PUBLISHED
from fitserve_training.config import Values
from fitserve_training.errors import RunStoppedError, UsageError

_HEADER = ("recipe", "data", "figure", "published", "reached", "verdict")
_TOLD = ("test_accuracy", "test_macro_f1", "test_loss")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; gives its exit code."""
    options = _parser().parse_args(argv)
    try:
        stopped = {} if options.table_only else train_all(options.runs, options.data_dir, options.device, _say)
        rows = table_rows(options.runs, stopped)
    except UsageError as error:
        print(f"all recipes: {error}", file=sys.stderr)
        return 2
    _say("")
    for line in table_lines(rows):
        _say(line)
    return 1 if any(row[-1] in ("OUTSIDE", "stopped") for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fitserve_training.all_recipes", description=__doc__)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the runs go (default runs)")
    add("--data-dir", type=Path, metavar="DIR", help="where data files are (default: environment variable DATA_DIR)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--table-only", action="store_true", help="train nothing; make the table of the runs that are there")
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


def train_all(runs: Path, data_dir: Path | None, device: str, say: Callable[[str], None]) -> dict[str, str]:
    """Trains every published recipe into its folder of `runs`; gives why those that were stopped were.

    Raises:
        UsageError: a recipe cannot be trained at all.
    """
    from fitserve_training.launch import Request, train

    stopped = {}
    changes: Values = {"device": device}
    for name in PUBLISHED:
        try:
            train(Request(name, runs / name, changes=changes, data_dir=data_dir), say)
        except RunStoppedError as error:
            say(f"{name}: stopped: {error}")
            stopped[name] = str(error)
    return stopped


def table_rows(runs: Path, stopped: dict[str, str]) -> list[tuple[str, ...]]:
    """Gives the table's rows: one per published band, or one that says that none is published for this data.

    Args:
        runs: Holds a run per recipe.
        stopped: Recipes whose run was stopped, with the reason.

    Raises:
        UsageError: a run is missing.
    """
    return [row for name in PUBLISHED for row in _rows(name, runs / name, stopped)]


def _rows(name: str, run_dir: Path, stopped: dict[str, str]) -> list[tuple[str, ...]]:
    if name in stopped:
        return [(name, "", stopped[name][:60], "", "", "stopped")]
    if not rundir.is_finished(run_dir):
        raise UsageError(f"run directory {run_dir}: expected a finished run of {name}, found none")
    summary: dict[str, Any] = json.loads((run_dir / rundir.SUMMARY).read_text(encoding="utf-8"))
    data = summary["data"]["name"]
    if not summary["published"]:
        metric = next(key for key in _TOLD if summary.get(key) is not None)
        return [(name, data, metric, "no published band", f"{summary[metric]:.6g}", "")]
    return [
        (
            name,
            data,
            band["metric"],
            f"{band['low']:.6g} to {band['high']:.6g}",
            f"{band['value']:.6g}",
            "inside" if band["is_inside"] else "OUTSIDE",
        )
        for band in summary["published"]
    ]


def table_lines(rows: list[tuple[str, ...]]) -> list[str]:
    """Lays the rows out in columns; a recipe's and its data's name stand in its first row alone."""
    shown = [list(_HEADER)]
    for before, row in zip([("", ""), *rows], rows, strict=False):
        is_same = before[:2] == row[:2]
        shown.append(["", "", *row[2:]] if is_same else list(row))
    widths = [max(len(row[column]) for row in shown) for column in range(len(_HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


if __name__ == "__main__":
    sys.exit(main())
