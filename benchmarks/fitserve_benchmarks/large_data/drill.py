"""Trains on pictures and a table that are larger than memory, and on parts of them beside memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fitserve_benchmarks.large_data.limited import Limited, run_limited
from fitserve_benchmarks.large_data.made_data import COLUMN_COUNT, make_pictures, make_table

_PLACES: Final = ("disk", "memory")
_LARGEST_PART: Final = 50_000_000
"""Bytes of a table that is read into memory, where each cell is an object."""

_BEFORE_FIRST_STEP: Final = "device "
"""The line that a run says once data and model are there, right before its first step."""


@dataclass(frozen=True)
class DrillPlan:
    """How large a drill is.

    Args:
        picture_count: Pictures; 0 leaves them out.
        image_size: Pixels a side, of the files and of what is trained on.
        table_bytes: Of the .csv file; 0 leaves it out.
        limit_bytes: Memory that a run may take.
        part: Share of the data that is also trained on in memory, without a limit.
        recipe: That trains on pictures.
        seed: Of the data.
    """

    picture_count: int
    image_size: int
    table_bytes: int
    limit_bytes: int
    part: float
    recipe: str
    seed: int = 0


@dataclass(frozen=True)
class DrillRow:
    """What one run took; bytes are those of the examples as they are kept, memory is at its peak."""

    run: str
    kept_gb: float
    limit: str
    anonymous_gb: float
    group_gb: float | None
    first_step_s: float
    examples_per_s: float
    test_loss: float


def drill(plan: DrillPlan, folder: Path, say: Callable[[str], None]) -> list[DrillRow]:
    """Makes the data in an empty folder and trains on it.

    Raises:
        RuntimeError: a run failed, or a run from a file ended otherwise than the same run in memory.
    """
    rows: list[DrillRow] = []
    if plan.picture_count:
        rows += _Kind("pictures", plan, folder, say).rows(_make_pictures, _picture_settings(plan))
    if plan.table_bytes:
        rows += _Kind("table", plan, folder, say).rows(_make_table, _TABLE_SETTINGS)
    return rows


def table_text(rows: Sequence[DrillRow]) -> str:
    """Puts the rows into a table of plain text."""
    head = f"{'run':<30} {'kept GB':>8} {'anon. GB':>9} {'group GB':>9} {'1st step s':>11} {'examples/s':>11}"
    lines = [
        f"{row.run:<30} {row.kept_gb:>8.2f} {row.anonymous_gb:>9.2f} "
        f"{'-' if row.group_gb is None else f'{row.group_gb:.2f}':>9} {row.first_step_s:>11.1f} "
        f"{row.examples_per_s:>11,.0f}  {row.limit}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def write_rows(rows: Sequence[DrillRow], path: Path) -> None:
    """Writes the rows as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


_TABLE_SETTINGS: Final = ("mlp", "data.label=label", "batch_size=4096", "lr=0.002")


def _picture_settings(plan: DrillPlan) -> tuple[str, ...]:
    return plan.recipe, f"data.image_size={plan.image_size}", "batch_size=64", "lr=0.0001"


def _make_pictures(plan: DrillPlan, part: float, place: Path) -> tuple[Path, float]:
    count = round(part * plan.picture_count)
    make_pictures(place, count, plan.image_size, plan.seed)
    return place, count * 3 * plan.image_size**2 / 1e9


def _make_table(plan: DrillPlan, part: float, place: Path) -> tuple[Path, float]:
    path = place.with_suffix(".csv")
    byte_count = plan.table_bytes if part == 1 else min(round(part * plan.table_bytes), _LARGEST_PART)
    return path, make_table(path, byte_count, plan.seed) * COLUMN_COUNT * 4 / 1e9


class _Kind:
    """The runs on one kind of data."""

    def __init__(self, name: str, plan: DrillPlan, folder: Path, say: Callable[[str], None]) -> None:
        self._name, self._plan, self._folder, self._say = name, plan, folder, say

    def rows(
        self, make: Callable[[DrillPlan, float, Path], tuple[Path, float]], settings: Sequence[str]
    ) -> list[DrillRow]:
        """Trains on all of it twice under the limit, then on a part from a file and in memory."""
        whole = self._made(make, 1.0, "whole")
        limit = self._plan.limit_bytes
        runs = [f"{self._name}, {which}" for which in ("new", "again")]
        rows = [self._trained(whole, run, "disk", settings, limit) for run in runs]
        part = self._made(make, self._plan.part, "part")
        runs = [f"{self._name}, part, {where}" for where in _PLACES]
        rows += [self._trained(part, run, where, settings, None) for run, where in zip(runs, _PLACES, strict=True)]
        if rows[-1].test_loss != rows[-2].test_loss:
            raise RuntimeError(f"expected the same loss from a file as in memory, got {rows[-2]} and {rows[-1]}")
        return rows

    def _made(
        self, make: Callable[[DrillPlan, float, Path], tuple[Path, float]], part: float, word: str
    ) -> tuple[Path, float]:
        started = time.monotonic()
        made = make(self._plan, part, self._folder / f"{self._name}-{word}")
        self._say(f"made {made[0].name}, {made[1]:.2f} GB as kept, in {time.monotonic() - started:.0f} s")
        return made

    def _trained(
        self, data: tuple[Path, float], run: str, where: str, settings: Sequence[str], limit_bytes: int | None
    ) -> DrillRow:
        path, kept_gb = data
        run_dir = self._folder / "runs" / run.replace(", ", "-")
        recipe, *changes = settings
        command = [sys.executable, "-m", "fitserve_training.cli", recipe]
        command += ["--data", str(path), "--run-dir", str(run_dir)]
        for change in (*changes, "epochs=2", "compile=off"):
            command += ["--set", change]
        environment = {"XDG_CACHE_HOME": str(self._folder / "cache"), "FITSERVE_DATA_STORE": where}
        if limit_bytes is not None:
            _forget(self._folder)
        found = run_limited(command, environment, limit_bytes)
        self._say(f"{run}: exit code {found.exit_code} after {found.lines[-1][0] if found.lines else 0:.0f} s")
        if found.exit_code != 0:
            raise RuntimeError(f"{run}: exit code {found.exit_code} ({found.limit}): {found.tail()}")
        return _row(run, kept_gb, found, json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))


def _forget(folder: Path) -> None:
    """Has the kernel drop what it keeps of the files, so that a run pays for what it reads."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _row(run: str, kept_gb: float, found: Limited, summary: dict[str, Any]) -> DrillRow:
    return DrillRow(
        run=run,
        kept_gb=kept_gb,
        limit=found.limit,
        anonymous_gb=found.anonymous_bytes / 1e9,
        group_gb=None if found.group_bytes is None else found.group_bytes / 1e9,
        first_step_s=found.seconds_to(_BEFORE_FIRST_STEP),
        examples_per_s=summary["examples_per_s"],
        test_loss=summary["test_loss"],
    )
