"""The training loop. Everything it touches lives on the device; it reads results back once per epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fitserve_training.config import RunConfig
from fitserve_training.data.buckets import bucketed_batches
from fitserve_training.data.dataset import Batch, Split
from fitserve_training.data.store.placing import is_to_be_staged
from fitserve_training.data.store.staging import staged
from fitserve_training.device import now
from fitserve_training.errors import RunStoppedError
from fitserve_training.evaluating import evaluate, first_loss
from fitserve_training.objectives import Objective
from fitserve_training.optim import is_lr_scheduled, learning_rate, set_learning_rate
from fitserve_training.seeding import generator, seed_global
from fitserve_training.stepping import Stepper

_POINTS_PER_EPOCH = 5
_EVERY_EPOCH_UP_TO = 100
_FIRST_EPOCHS = 10


@dataclass(frozen=True)
class Job:
    """All that the loop needs; model and splits are on one device.

    Args:
        config: Settings of the run.
        model: Trained in place.
        objective: What is minimised.
        stepper: Takes the steps.
        train: What is trained on.
        held_out: What every logged epoch is tested on; it decides nothing.
        validation: What the best epoch is chosen by; None where nothing is selected.
        scoring: What `held_out` and `validation` are scored by where that is not the objective.
        autocast: The precision of evaluation, which is that of training; None stands for that of the weights.
        is_loss_after_epoch: Train metrics are those of the parameters that an epoch ends with.
        cure: What to change when the loss is not finite.
    """

    config: RunConfig
    model: nn.Module
    objective: Objective
    stepper: Stepper
    train: Split
    held_out: Split
    validation: Split | None = None
    scoring: Objective | None = None
    autocast: torch.autocast | None = None
    is_loss_after_epoch: bool = False
    cure: str = "lower the learning rate (--set lr=…)"


@dataclass(frozen=True)
class Progress:
    """How far a run is: all that the loop knows beside parameters and the optimizer's state.

    Args:
        epoch: Epochs done.
        is_last: Whether training is over.
        best_loss: Lowest validation loss; None before there is one.
        best_epoch: The epoch it belongs to; 0 before there is one.
        is_early: Whether it is over for another reason than that all epochs are done, so that more would add nothing.
    """

    epoch: int = 0
    is_last: bool = False
    best_loss: float | None = None
    best_epoch: int = 0
    is_early: bool = False

    def after(self, epoch: int, validation_loss: float | None) -> Progress:
        """Gives the progress after an epoch; the loss is None where nothing is selected."""
        loss = math.inf if validation_loss is None or math.isnan(validation_loss) else validation_loss
        if loss < (math.inf if self.best_loss is None else self.best_loss):
            return replace(self, epoch=epoch, best_loss=loss, best_epoch=epoch)
        return replace(self, epoch=epoch)


@dataclass(frozen=True)
class EpochReport:
    """What an epoch gave.

    `metrics` is empty where the epoch is not logged, and there are no `test_outputs` then; `points` are pairs of epochs
    done and the metrics so far.
    """

    progress: Progress
    metrics: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    test_outputs: Tensor | None = None

    @property
    def epoch(self) -> int:
        """The epoch, from 1."""
        return self.progress.epoch

    @property
    def is_last(self) -> bool:
        """Whether training ends with it."""
        return self.progress.is_last

    @property
    def is_best(self) -> bool:
        """Whether no epoch before it had so low a validation loss; never where nothing is selected."""
        return self.progress.best_epoch == self.epoch


class Observer(Protocol):
    """Is told how training goes."""

    def on_progress(self, epoch: int, share: float) -> None:
        """This share (0..1) of the epoch's steps has been asked of the device."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch is over and the parameters are those it ends with."""


def fit(job: Job, observer: Observer, progress: Progress | None = None) -> Progress:
    """Trains from where `progress` says to the last epoch, or until it is time to stop; gives the progress then.

    Raises:
        RunStoppedError: the loss of an epoch, or of the weights that training ends with, is not finite.
    """
    progress = progress or Progress()
    while not progress.is_last:
        epoch = progress.epoch + 1
        parameters_before = _flat_parameters(job.model) if job.config.stop_when_still else None
        clock = EpochClock(job.stepper, job.train.targets.device)
        snapshots = _train_epoch(job, epoch, observer)
        speed = clock.examples_per_s(len(job.train))
        metrics = job.objective.metrics(snapshots[max(snapshots)], len(job.train))
        _check_finite("loss", metrics["loss"], epoch, job)
        is_still = parameters_before is not None and _is_still(job.model, parameters_before, job.config.stop_when_still)
        is_last = is_still or epoch >= job.config.epochs
        report = EpochReport(progress.after(epoch, None))
        if is_last or is_logged(epoch, job.config):
            logged, outputs = _tested(job, _epoch_metrics(job, epoch, metrics))
            points = _points(job, epoch, snapshots)
            report = EpochReport(progress.after(epoch, logged.get("val_loss")), logged | speed, points, outputs)
        is_early = is_still or 0 < job.config.patience <= epoch - report.progress.best_epoch
        is_last = is_last or is_early
        if is_last:
            _check_ending(job, report.progress)
        progress = replace(report.progress, is_last=is_last, is_early=is_early)
        job.stepper.record.count_graphs()
        observer.on_epoch(replace(report, progress=progress))
    return progress


def _train_epoch(job: Job, epoch: int, observer: Observer) -> dict[int, list[float]]:
    """Trains one epoch; gives the sums so far after each step that is a curve point, the last step among them."""
    config, device, workers = job.config, job.train.targets.device, job.stepper.plan.workers
    seed_global(config.seed, "epoch", epoch, *([workers.rank] if workers.rank else []))
    batches = list(epoch_indices(config.seed, epoch, len(job.train), config.batch_size, device, job.train.lengths))
    marks, snapshots = curve_marks(len(batches)), []
    sums = job.stepper.sums.zero_()
    is_scheduled = is_lr_scheduled(config)
    job.model.train()
    with _feed(job, batches) as feed:
        for number, (indices, batch) in enumerate(zip(batches, feed, strict=True), start=1):
            if is_scheduled:
                step = (epoch - 1) * len(batches) + number - 1
                set_learning_rate(job.stepper.optimizer, learning_rate(config, step, config.epochs * len(batches)))
            job.stepper.train_on(job.train, indices, batch)
            if number in marks:
                snapshots.append(sums.clone())
                observer.on_progress(epoch, number / len(batches))
    stacked = torch.stack(snapshots)
    workers.add_up(stacked)
    return dict(zip(sorted(marks), stacked.tolist(), strict=True))


def _feed(job: Job, batches: Sequence[Tensor | None]) -> AbstractContextManager[Iterator[Batch | None]]:
    """Gives each batch of an epoch where they are worth gathering ahead of time, else None for each."""
    whole = [indices for indices in batches if indices is not None]
    if len(whole) < len(batches) or not is_to_be_staged(job.train):
        return nullcontext(repeat(None, len(batches)))
    return staged(job.train, [job.stepper.plan.workers.part(indices) for indices in whole])


class EpochClock:
    """Measures an epoch's training; steps of the warm-up, compilation in them, are left out with their examples."""

    def __init__(self, stepper: Stepper, device: torch.device) -> None:
        self._stepper, self._device = stepper, device
        self._warm_up = stepper.record.warm_up_s, stepper.warm_up_examples
        self._started = now(device)

    def examples_per_s(self, example_count: int) -> dict[str, float]:
        """Gives the speed until now; nothing where the warm-up was all there was."""
        warm_up_s, warm_up_examples = self._warm_up
        elapsed_s = now(self._device) - self._started - (self._stepper.record.warm_up_s - warm_up_s)
        example_count -= self._stepper.warm_up_examples - warm_up_examples
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
    if config.is_selecting:
        return True
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
    train = running
    if job.is_loss_after_epoch:
        train = evaluate(job.model, job.objective, job.train, job.autocast).metrics
    return {"epoch": epoch, **{f"train_{name}": value for name, value in train.items()}}


def _tested(job: Job, metrics: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """Adds the metrics of the validation split, if any, and of the held-out one; gives the latter's outputs."""
    scoring = job.scoring or job.objective
    if job.validation is not None:
        found = evaluate(job.model, scoring, job.validation, job.autocast).metrics
        metrics = metrics | {f"val_{name}": value for name, value in found.items()}
    test = evaluate(job.model, scoring, job.held_out, job.autocast)
    return metrics | {f"test_{name}": value for name, value in test.metrics.items()}, test.outputs


def _check_ending(job: Job, progress: Progress) -> None:
    """Checks the weights that a run ends with; its last update may have made them useless."""
    if job.config.keep_weights == "best":
        if progress.best_epoch == 0:
            raise RunStoppedError(
                f"the validation loss was finite after no epoch, with lr {job.config.lr:g}: {job.cure}"
            )
        return
    loss = first_loss(job.model, job.objective, job.train, job.autocast)
    _check_finite("loss of the final weights", loss, progress.epoch, job)


def _points(job: Job, epoch: int, snapshots: dict[int, list[float]]) -> list[tuple[float, dict[str, float]]]:
    step_count, size = max(snapshots), job.config.batch_size or len(job.train)
    points = []
    for number, sums in snapshots.items():
        metrics = job.objective.metrics(sums, min(number * size, len(job.train)))
        points.append((epoch - 1 + number / step_count, {f"train_{name}": value for name, value in metrics.items()}))
    return points
