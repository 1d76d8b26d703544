"""Finished runs, as exporters need them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fitserve_contract.columns import COLUMNS_FILE, TableColumns
from fitserve_contract.tasks import Task
from fitserve_training import rundir
from fitserve_training.catalogue import load_recipe
from fitserve_training.checkpoint import load_weights
from fitserve_training.config import RunConfig, read_toml
from fitserve_training.data.dataset import DataSet, split_sha256
from fitserve_training.data.places import Places
from fitserve_training.data.store.expanded import batch_array
from fitserve_training.errors import UsageError
from fitserve_training.form import FILE as FORM_FILE
from fitserve_training.form import Form
from fitserve_training.recipe import Recipe, ServedInput
from fitserve_training.settings import read_config, resolve_config


@dataclass(frozen=True)
class HeldOut:
    """All held-out examples of a run.

    Args:
        inputs: One array per input of the served model, each (N, …); texts as `bytes` objects.
        labels: int64 (N,) for classification, bool (N, C) for multi-label, the output's dtype and shape for regression.
        source: Where they come from, one line.
        sha256: Of the arrays, as `fitserve_training.data.dataset.split_sha256` computes it.
    """

    inputs: dict[str, np.ndarray[Any, Any]]
    labels: np.ndarray[Any, Any]
    source: str
    sha256: str


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Args:
        recipe: The recipe's name.
        module: Eager, in evaluation mode, on the CPU, float32, with the final weights; takes its inputs by position and
            gives the served output.
        inputs: The module's inputs in the order of its forward; those that are served, but for a table of `columns`.
        output_names: The served outputs.
        task: What the output means.
        training_record: How the module came to be, JSON-able, for the manifest.
        tolerance: The recipe's own export tolerance; None means the exporter's.
        extra_files: What the model is of no use without, by file name, for example its tokenizer.
        columns: Of a table that is served column by column: what the module's inputs are computed from.
    """

    recipe: str
    module: nn.Module
    inputs: tuple[ServedInput, ...]
    output_names: tuple[str, ...]
    task: Task
    training_record: dict[str, Any]
    tolerance: Mapping[str, float] | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    columns: TableColumns | None = None
    _load_data: Callable[[], DataSet] = field(kw_only=True, repr=False)

    def held_out(self) -> HeldOut:
        """Loads the held-out examples that the run was tested on.

        Raises:
            UsageError: the data is not at hand any more, or is not what the run was tested on.
        """
        data = self._load_data()
        sha256, expected = split_sha256(data.held_out), self.training_record["data"]["held_out_sha256"]
        if sha256 != expected:
            raise UsageError(f"held-out data {data.name}: expected SHA-256 {expected} as in the run, got {sha256}")
        if data.files.get(COLUMNS_FILE) != self.extra_files.get(COLUMNS_FILE):
            raise UsageError(
                f"held-out data {data.name}: its columns or their values have changed since the run; put the data "
                "back, or train anew"
            )
        if data.served is not None:
            return HeldOut(data.served.held_out(), data.held_out.targets.numpy(), data.source, sha256)
        arrays = [batch_array(data.held_out, place) for place in range(len(self.inputs))]
        named = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        return HeldOut(named, data.held_out.targets.numpy(), data.source, sha256)

    def training_inputs(self, count: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
        """Draws inputs of training examples without repetition, one array per input of the served model, each (B, …).

        Args:
            count: How many; all where there are fewer.
            seed: Same seed, same examples.

        Raises:
            UsageError: the data is not at hand any more.
        """
        data = self._load_data()
        train = data.train
        drawn = np.random.default_rng(seed).choice(len(train), min(count, len(train)), replace=False)
        if data.served is not None:
            return data.served.train(drawn)
        taken = train.subset(torch.from_numpy(drawn)).whole().inputs
        return {spec.name: x.numpy() for spec, x in zip(self.inputs, taken, strict=True)}


def open_run(run_dir: Path, *, data_dir: Path | None = None) -> TrainedRun:
    """Opens a finished run with its final weights.

    Args:
        run_dir: What `fitserve-train` wrote.
        data_dir: Where data files are; the environment's DATA_DIR where it is None.

    Raises:
        UsageError: there is no finished run, or a file of it is damaged; the message names it.
    """
    if not rundir.is_finished(run_dir):
        raise UsageError(f"run directory {run_dir}: expected a finished run ({rundir.SUMMARY}), found none")
    places = Places.default(data_dir)
    recipe, config = _read_recipe(run_dir / rundir.CONFIG, places)
    summary = _read_json(run_dir / rundir.SUMMARY)
    form = _form(run_dir, recipe)
    recipe = recipe.for_form(form) if recipe.for_form and form else recipe
    model = recipe.build_model(config)
    load_weights(run_dir / rundir.WEIGHTS, model)
    return TrainedRun(
        recipe=recipe.name,
        module=recipe.served(model).eval().requires_grad_(False),
        inputs=recipe.inputs,
        output_names=(recipe.output_name,),
        task=Task.from_json(summary["task"]),
        training_record=_record(config, summary, _read_json(run_dir / rundir.ENVIRONMENT)),
        tolerance=recipe.tolerance,
        extra_files=form.files if form else {},
        columns=_served_columns(form.files) if form else None,
        _load_data=lambda: recipe.load_data(config, places),
    )


def _served_columns(files: Mapping[str, bytes]) -> TableColumns | None:
    columns = TableColumns.from_bytes(files[COLUMNS_FILE]) if COLUMNS_FILE in files else None
    return None if columns is None or columns.is_joined else columns


def _form(run_dir: Path, recipe: Recipe) -> Form | None:
    """Reads the run's form; image recipes are complete without, and their runs of earlier versions have none."""
    is_needed = recipe.for_form is not None and (not recipe.bands or (run_dir / FORM_FILE).is_file())
    return Form.read(run_dir) if is_needed else None


def _read_recipe(path: Path, places: Places) -> tuple[Recipe, RunConfig]:
    recipe = load_recipe(str(read_toml(path).get("recipe", "")), rundir.kept_recipe(path.parent))
    return recipe, resolve_config(recipe, None, read_config(path, recipe.address), places)


def _record(config: RunConfig, summary: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    kept = ("recipe", "seed", "data", "device", "compile", "parameter_count", "parameters")
    metrics = {key: value for key, value in summary.items() if key.startswith(("train_", "val_", "test_", "epoch"))}
    return {
        **{key: summary[key] for key in kept},
        "config": config.to_flat(),
        "metrics": metrics,
        "torch_version": environment["packages"]["torch"],
        "commit": environment["commit"],
        "environment": environment,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"run file {path}: cannot be read: {error}") from None
    return value
