"""One recipe under several seeds: what its figures are, and how much of them is chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fitserve_training import rundir
from fitserve_training.config import read_toml
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.resuming import run_folder

SEEDS_FILE = "seeds.json"


def train_seeds(request: Request, count: int, say: Callable[[str], None]) -> Path:
    """Trains `count` runs, from the request's seed onwards, into `<run_dir>-seeds/seed-<n>`; gives that folder.

    With `is_resumed`, finished runs are kept or trained longer, an unfinished one goes on, and the others are started
    with the settings of those.

    Raises:
        UsageError, RunStoppedError: as `train`; the runs before are there.
    """
    place = request.run_dir.resolve()
    folder = place.with_name(f"{place.name}-seeds")
    folder.mkdir(parents=True, exist_ok=True)
    if request.is_resumed and request.config_file is None:
        request = replace(request, config_file=_begun_config(folder))
    first = _first_seed(request)
    summaries = []
    for seed in range(first, first + count):
        run_dir = _train_one(request, folder / f"seed-{seed}", seed, say)
        summaries.append(json.loads((run_dir / rundir.SUMMARY).read_text(encoding="utf-8")))
    figures = figures_over(summaries)
    (folder / SEEDS_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for line in table_lines(figures, count):
        say(line)
    return folder


def _first_seed(request: Request) -> int:
    file_values = read_toml(request.config_file) if request.config_file else {}
    seed = (file_values | request.changes).get("seed", 0)
    try:
        return int(seed)
    except ValueError:
        raise UsageError(f"--set: setting 'seed': expected a whole number, got {seed!r}") from None


def _train_one(request: Request, run_dir: Path, seed: int, say: Callable[[str], None]) -> Path:
    is_begun = (run_folder(run_dir) / rundir.CONFIG).is_file()
    changes = {**request.changes, "seed": seed}
    return train(replace(request, run_dir=run_dir, changes=changes, is_resumed=request.is_resumed and is_begun), say)


def _begun_config(folder: Path) -> Path | None:
    """Finds the settings of the run of the lowest seed that is there already; None where there is none."""
    found = folder.glob(f"seed-*/{rundir.CONFIG}")
    return min(found, key=lambda path: int(read_toml(path).get("seed", 0)), default=None)


def figures_over(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Gives mean, sample standard deviation, least and greatest of every metric that all the summaries have."""
    prefixes = ("train_", "val_", "test_")
    metrics = [key for key, value in summaries[0].items() if key.startswith(prefixes) and value is not None]
    figures = {}
    for key in metrics:
        values = [summary[key] for summary in summaries if summary.get(key) is not None]
        if len(values) == len(summaries):
            sd = stdev(values) if len(values) > 1 else 0.0
            figures[key] = {"mean": mean(values), "sd": sd, "least": min(values), "greatest": max(values)}
    return figures


def table_lines(figures: Mapping[str, Mapping[str, float]], count: int) -> list[str]:
    """Puts the figures into a table of plain text."""
    lines = [f"{f'{count} seeds':<22} {'mean':>12} {'± sd':>11} {'least':>12} {'greatest':>12}"]
    for key, f in figures.items():
        name = key.replace("_", " ")
        lines.append(f"{name:<22} {f['mean']:>12.6g} {f['sd']:>11.2g} {f['least']:>12.6g} {f['greatest']:>12.6g}")
    return lines
