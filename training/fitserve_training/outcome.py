"""What a finished run says about itself: its summary, and whether it reached the published figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fitserve_contract.tasks import TaskKind
from fitserve_training.compiling import CompileRecord
from fitserve_training.config import RunConfig
from fitserve_training.data.dataset import DataSet, split_sha256
from fitserve_training.errors import RunStoppedError
from fitserve_training.fit import Progress
from fitserve_training.objectives import class_counts
from fitserve_training.recipe import Band, Finish, Recipe
from fitserve_training.settings import is_own_mathematics

_MOST_CLASSES = 10
"""So many classes are named in a line."""


def summarise(
    recipe: Recipe,
    finish: Finish,
    compile_record: CompileRecord,
    device: torch.device,
    progress: Progress,
    measured: dict[str, float],
) -> dict[str, Any]:
    """Gives summary.json: the last metrics, the recipe's own figures, speed, parameters, data, device, compile."""
    config, data, model, rows = finish.config, finish.data, finish.model, finish.rows
    speeds = [row["examples_per_s"] for row in rows if row.get("examples_per_s")]
    return {
        "recipe": recipe.name,
        **rows[-1],
        **measured,
        "examples_per_s": median(speeds) if speeds else None,
        "seed": config.seed,
        "epochs_done": progress.epoch,
        "best": {"epoch": progress.best_epoch, "val_loss": progress.best_loss} if progress.best_epoch else None,
        "device": str(device),
        "compile": vars(compile_record),
        "parameter_count": sum(p.numel() for p in model.parameters()),
        "parameters": recipe.parameters(model) if recipe.parameters else None,
        "data": {
            "name": data.name,
            "source": data.source,
            "train_count": len(data.train),
            "validation_count": len(data.validation) if data.validation is not None else 0,
            "held_out_count": len(data.held_out),
            "checksums": dict(data.checksums),
            "held_out_sha256": split_sha256(data.held_out),
        },
        "task": recipe.task(data).to_json(),
        "published": [_judge(band, {**rows[-1], **measured}) for band in published_bands(recipe, config)],
    }


def class_summary(kind: TaskKind, outputs: Tensor, data: DataSet) -> dict[str, Any]:
    """Returns the figures of each class on the held-out examples as `classes`; nothing for other tasks.

    Args:
        kind: The task.
        outputs: Logits of the held-out examples, (N, C).
        data: What they are of.
    """
    if kind is not TaskKind.CLASSIFICATION:
        return {}
    counts = class_counts(outputs.cpu(), data.held_out.targets.cpu())
    rows = zip(
        data.class_names,
        *(counts.example_counts, counts.predicted_counts, counts.true_positives),
        *(map(_known, figures) for figures in (counts.recalls, counts.precisions, counts.f1_scores)),
        strict=True,
    )
    keys = ("name", "example_count", "predicted_count", "correct_count", "recall", "precision", "f1")
    return {"classes": [dict(zip(keys, row, strict=True)) for row in rows]}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def published_bands(recipe: Recipe, config: RunConfig) -> tuple[Band, ...]:
    """Gives the bands that this run is held to: none where its data or its settings are not the published ones."""
    bands = recipe.bands.get(str(config.data["name"]), ())
    return bands if is_own_mathematics(recipe, config) else ()


def _judge(band: Band, metrics: dict[str, Any]) -> dict[str, Any]:
    value = metrics[band.metric]
    return {**vars(band), "value": value, "is_inside": band.holds(value)}


def check_required(summary: dict[str, Any]) -> None:
    """Checks the bands that a run has to keep.

    Raises:
        RunStoppedError: the run is outside one of them.
    """
    for band in summary["published"]:
        if band["is_required"] and not band["is_inside"]:
            raise RunStoppedError(
                f"recipe {summary['recipe']}: {band['metric']} is {band['value']:.4g} after epoch {summary['epoch']}, "
                f"expected {band['low']:g} to {band['high']:g}: the run is not accepted"
            )


def closing_lines(summary: dict[str, Any]) -> list[str]:
    """Puts a summary into a few lines for people."""
    told: tuple[str, ...] = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    told += ("test_loss", "test_accuracy", "test_balanced_accuracy")
    told += ("test_mae", "test_r2", "test_micro_f1", "test_macro_f1", "test_exact_match")
    metrics = ", ".join(f"{key.replace('_', ' ')} {summary[key]:.7g}" for key in told if summary.get(key) is not None)
    speed = f", {summary['examples_per_s']:,.0f} examples/s on {summary['device']}" if summary["examples_per_s"] else ""
    lines = [f"{summary['recipe']}: {metrics}{speed}"]
    if summary.get("test_loss") is None:
        lines.append("warning: the test loss is not finite, though that of the training examples is: look for outliers")
    lines += _recall_lines(summary.get("classes", []))
    if summary["parameters"]:
        lines.append("parameters: " + ", ".join(f"{k} {v:.6g}" for k, v in summary["parameters"].items()))
    for band in summary["published"]:
        verdict = "inside" if band["is_inside"] else "OUTSIDE"
        lines.append(f"{band['metric']} {band['value']:.7g}: {verdict} {band['low']:.7g} to {band['high']:.7g}")
    return lines


def _recall_lines(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the classes with their recall on the held-out examples; of many those that are found least."""
    known = [each for each in classes if each["recall"] is not None]
    if not known:
        return []
    what = "recall"
    if len(known) > _MOST_CLASSES:
        what = f"lowest recall of {len(known):,} classes"
        known = sorted(known, key=lambda each: float(each["recall"]))[:_MOST_CLASSES]
    return [f"{what}: " + ", ".join(f"{each['name']}={each['recall']:.4g}" for each in known)]
