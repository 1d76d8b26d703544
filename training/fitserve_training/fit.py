"""The training loop. Everything it touches lives on the device; it reads results back once per epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fitserve_training.compiling import compiled_graph_count
from fitserve_training.config import RunConfig
from fitserve_training.data.buckets import bucketed_batches
from fitserve_training.data.dataset import Split
from fitserve_training.device import now
from fitserve_training.errors import RunStoppedError
from fitserve_training.evaluating import evaluate
from fitserve_training.objectives import Objective
from fitserve_training.seeding import generator, seed_global
from fitserve_training.stepping import Stepper

_POINTS_PER_EPOCH = 5
_EVERY_EPOCH_UP_TO = 100
_FIRST_EPOCHS = 10


@dataclass(frozen=True)
class Job:
    """All that the loop needs; model and splits are on one device."""

    config: RunConfig
    model: nn.Module
    objective: Objective
    stepper: Stepper
    train: Split
    held_out: Split
    is_loss_after_epoch: bool = False
    cure: str = "lower the learning rate (--set lr=…)"


@dataclass(frozen=True)
class EpochReport:
    """What an epoch gave.

    `metrics` is empty where the epoch is not logged; `points` are pairs of epochs done and the metrics so far.
    """

    epoch: int
    is_last: bool
    metrics: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[float, dict[str, float]]] = field(default_factory=list)


class Observer(Protocol):
    """Is told how training goes."""

    def on_progress(self, epoch: int, share: float) -> None:
        """This share (0..1) of the epoch's steps has been asked of the device."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch is over and the parameters are those it ends with."""


def fit(job: Job, observer: Observer, first_epoch: int = 1) -> None:
    """Trains from `first_epoch` to the last, or until the parameters stand still.

    Raises:
        RunStoppedError: the loss of an epoch is not finite.
    """
    config, device = job.config, job.train.targets.device
    sums = torch.zeros(job.objective.sum_count, dtype=torch.float64, device=device)
    for epoch in range(first_epoch, config.epochs + 1):
        seed_global(config.seed, "epoch", epoch)
        parameters_before = _flat_parameters(job.model) if config.stop_when_still else None
        batches = list(epoch_indices(config.seed, epoch, len(job.train), config.batch_size, device, job.train.lengths))
        marks = curve_marks(len(batches))
        snapshots: dict[int, Tensor] = {}
        job.model.train()
        sums.zero_()
        clock = EpochClock(job.stepper, device)
        for number, indices in enumerate(batches, start=1):
            job.stepper(job.train.whole() if indices is None else job.train.take(indices), sums)
            if number in marks:
                snapshots[number] = sums.clone()
                observer.on_progress(epoch, number / len(batches))
        speed = clock.examples_per_s(len(job.train))
        metrics = job.objective.metrics(sums.tolist(), len(job.train))
        _check_finite("loss", metrics["loss"], epoch, job)
        is_still = parameters_before is not None and _is_still(job.model, parameters_before, config.stop_when_still)
        is_last = is_still or epoch == config.epochs
        report = EpochReport(epoch, is_last)
        if is_last or is_logged(epoch, config):
            logged = _epoch_metrics(job, epoch, metrics) | speed
            report = EpochReport(epoch, is_last, logged, _points(job, epoch, snapshots))
        if is_last:
            _check_finite("test loss", report.metrics["test_loss"], epoch, job)
        job.stepper.record.graph_count = compiled_graph_count() if job.stepper.record.used != "off" else 0
        observer.on_epoch(report)
        if is_last:
            break


class EpochClock:
    """Measures an epoch's training; a first step with compilation in it is left out, with its examples."""

    def __init__(self, stepper: Stepper, device: torch.device) -> None:
        self._stepper, self._device = stepper, device
        self._first_step_s, self._started = stepper.record.first_step_s, now(device)

    def examples_per_s(self, example_count: int) -> dict[str, float]:
        """Gives the speed until now; nothing where compilation was all there was."""
        elapsed_s, compile_s = now(self._device) - self._started, self._stepper.record.first_step_s - self._first_step_s
        if compile_s:
            elapsed_s, example_count = elapsed_s - compile_s, example_count - self._stepper.full_size
        return {"examples_per_s": example_count / elapsed_s} if example_count > 0 and elapsed_s > 0 else {}


def epoch_indices(
    seed: int,
    epoch: int,
    example_count: int,
    batch_size: int,
    device: torch.device,
    lengths: Tensor | None = None,
) -> Iterator[Tensor | None]:
    """Gives an epoch's batches as int64 indices on `device`, shuffled anew every epoch; the last may be shorter.

    With `batch_size` 0 there is one batch of all examples in order: None stands for it. With `lengths` (N,) a batch
    holds examples of like length.
    """
    if batch_size == 0:
        yield None
        return
    if lengths is not None:
        batches = bucketed_batches(lengths, batch_size, generator(seed, "shuffle", epoch))
        yield from (indices.to(device) for indices in batches)
        return
    stream = generator(seed, "shuffle", epoch, device=device)
    yield from torch.split(torch.randperm(example_count, generator=stream, device=device), batch_size)


def curve_marks(batch_count: int) -> set[int]:
    """Gives the step numbers, from 1, of an epoch's five curve points; fewer where there are fewer steps."""
    points = min(_POINTS_PER_EPOCH, batch_count)
    return {round(batch_count * k / points) for k in range(1, points + 1)}


def is_logged(epoch: int, config: RunConfig) -> bool:
    """Says whether the epoch gets a line of metrics; the last one always does, whatever this says."""
    if config.log_every:
        return epoch % config.log_every == 0
    return epoch <= _FIRST_EPOCHS or epoch % max(1, config.epochs // _EVERY_EPOCH_UP_TO) == 0


def _flat_parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def _is_still(model: nn.Module, before: Tensor, tolerance: float) -> bool:
    return bool((_flat_parameters(model) - before).abs().max() <= tolerance)


def _check_finite(name: str, loss: float, epoch: int, job: Job) -> None:
    if not math.isfinite(loss):
        raise RunStoppedError(f"the {name} is {loss} at epoch {epoch} with lr {job.config.lr:g}: {job.cure}")


def _epoch_metrics(job: Job, epoch: int, running: dict[str, float]) -> dict[str, Any]:
    train = evaluate(job.model, job.objective, job.train) if job.is_loss_after_epoch else running
    test = evaluate(job.model, job.objective, job.held_out)
    return {
        "epoch": epoch,
        **{f"train_{name}": value for name, value in train.items()},
        **{f"test_{name}": value for name, value in test.items()},
    }


def _points(job: Job, epoch: int, snapshots: dict[int, Tensor]) -> list[tuple[float, dict[str, float]]]:
    step_count, size = max(snapshots), job.config.batch_size or len(job.train)
    points = []
    for (number, _), sums in zip(snapshots.items(), torch.stack(list(snapshots.values())).tolist(), strict=True):
        metrics = job.objective.metrics(sums, min(number * size, len(job.train)))
        points.append((epoch - 1 + number / step_count, {f"train_{name}": value for name, value in metrics.items()}))
    return points
