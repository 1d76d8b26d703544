"""What --resume goes on with: an unfinished run, or a finished one that is to be trained longer.

Settings given beside it may change what a run writes and how long it trains, and nothing else: a run that goes on ends
with the bits of one that had its settings from the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from fitserve_training import rundir
from fitserve_training.checkpoint import read_progress
from fitserve_training.config import RunConfig, Values
from fitserve_training.data.dataset import DataSet, Split, split_sha256
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError
from fitserve_training.fit import Progress
from fitserve_training.recipe import Recipe
from fitserve_training.settings import changed_settings, read_config, resolve_config

FREE = ("epochs", "log_every", "checkpoint_every_s", "tensorboard")
"""Settings that may be changed: none of them decides what an epoch computes."""

_SAMPLED_BYTES = 1 << 26
_FEWEST_ROWS = 64


@dataclass(frozen=True)
class RunPlan:
    """How a run begins or goes on.

    Args:
        config: Its settings.
        given: Dotted keys of the settings that a person chose; of a run that goes on, those that are changed.
        is_reopened: Whether the run is finished, and trained longer.
    """

    config: RunConfig
    given: tuple[str, ...] = ()
    is_reopened: bool = False


def run_folder(run_dir: Path) -> Path:
    """Finds the files that a run goes on with: those of the unfinished run, else those of the finished one."""
    unfinished = rundir.unfinished_path(run_dir)
    is_reopened = not (unfinished / rundir.CONFIG).is_file() and rundir.is_finished(run_dir)
    return run_dir if is_reopened else unfinished


def plan_resumption(
    recipe: Recipe, run_dir: Path, config_file: Path | None, changes: Values, places: Places
) -> RunPlan | None:
    """Plans how a run goes on; None where it is finished and no other settings are asked for.

    Args:
        recipe: Of the run.
        run_dir: Where the finished run goes, or is.
        config_file: Settings given beside --resume, in TOML.
        changes: Settings given beside it by dotted key, over those of the file.
        places: Where data may be.

    Raises:
        UsageError: there is no run, or it cannot go on so; the message names the setting, its value in the run and the
            cure.
    """
    folder = run_folder(run_dir)
    path, is_reopened = folder / rundir.CONFIG, folder == run_dir
    if not path.is_file():
        raise UsageError(f"run directory {run_dir}: expected a run to resume, found none; start it without --resume")
    values = read_config(path, recipe.address)
    before = resolve_config(recipe, None, values, places)
    if before.is_selecting and "validation_share" not in values:
        raise UsageError(
            f"run {run_dir}: an earlier version began it and selects by the held-out examples; start it again with "
            "another --run-dir"
        )
    config = changed_settings(recipe, before, config_file, changes)
    flat, flat_before = config.to_flat(), before.to_flat()
    changed = tuple(key for key in flat if flat[key] != flat_before[key])
    if is_reopened and not changed:
        return None
    for key in changed:
        if key not in FREE:
            raise UsageError(
                f"--resume: setting {key!r}: the run has {flat_before[key]!r}, and goes on with no other value, got "
                f"{flat[key]!r}; leave it out, or start a new run with another --run-dir"
            )
    _check_epochs(before, config)
    if is_reopened:
        _check_reopening(run_dir, before, config)
    return RunPlan(config, changed, is_reopened)


def _check_epochs(before: RunConfig, config: RunConfig) -> None:
    if config.epochs < before.epochs:
        raise UsageError(
            f"--resume: setting 'epochs': the run has {before.epochs}, and goes on with as many or more, got "
            f"{config.epochs}; start a new run with another --run-dir"
        )
    if config.epochs > before.epochs and config.lr_schedule != "constant":
        raise UsageError(
            f"--resume: setting 'epochs': the run has {before.epochs}, over which lr_schedule={config.lr_schedule} "
            f"brings the learning rate down, got {config.epochs}; start a new run with another --run-dir"
        )


def _check_reopening(run_dir: Path, before: RunConfig, config: RunConfig) -> None:
    path = run_dir / rundir.CHECKPOINT
    if config.epochs == before.epochs:
        raise UsageError(
            f"run {run_dir}: finished after its {before.epochs} epochs; expected more of them (--set epochs=N) beside "
            "the other settings, got none"
        )
    if not path.is_file():
        raise UsageError(
            f"run {run_dir}: expected {rundir.CHECKPOINT} to go on from, found none; start a new run with another "
            "--run-dir"
        )
    progress = Progress(**read_progress(path))
    if progress.is_early or progress.epoch < before.epochs:
        raise UsageError(
            f"run {run_dir}: it stopped after epoch {progress.epoch} of {before.epochs} by patience or "
            "stop_when_still, so more epochs add nothing; start a new run with another --run-dir"
        )


def data_record(data: DataSet) -> dict[str, Any]:
    """Describes the examples of a run, so that it goes on with no others: each split's count and a SHA-256 of its rows,
    the names of the classes, and a SHA-256 of each file of the data, such as its columns.

    Of all rows where they have at most 64 MiB, else of so many, evenly spaced.
    """
    splits = {"split train": data.train, "split validation": data.validation, "split held_out": data.held_out}
    files = {f"file {name}": hashlib.sha256(content).hexdigest() for name, content in sorted(data.files.items())}
    record: dict[str, Any] = {"list of classes": list(data.class_names), **files}
    for name, split in splits.items():
        if split is not None:
            row_bytes = sum(prod(shape) * dtype.itemsize for shape, dtype in _inputs(split))
            count = min(len(split), max(_FEWEST_ROWS, _SAMPLED_BYTES // max(1, row_bytes)))
            places = torch.arange(count) * len(split) // count
            record[name] = {"count": len(split), "sha256": split_sha256(split.subset(places))}
    return record


def _inputs(split: Split) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    return zip(split.input_shapes, split.input_dtypes, strict=True)


def check_same_data(run_dir: Path, data: DataSet) -> None:
    """Checks that a run that goes on finds the data that it began with; runs of earlier versions have no record of it.

    Raises:
        UsageError: the data has changed since.
    """
    path = run_folder(run_dir) / rundir.DATA
    if path.is_file() and (record := rundir.read_json(path)) != (found := data_record(data)):
        name = next(name for name in (*record, *found) if record.get(name) != found.get(name))
        raise UsageError(
            f"data {data.name}: it has changed since the run {run_dir} began: its {name} is another one; put the "
            "data back, or start a new run with another --run-dir"
        )
