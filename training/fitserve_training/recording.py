"""What a run writes while it trains: metrics, curve points, checkpoints, best weights, TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitserve_training import rundir
from fitserve_training.checkpoint import save_checkpoint, save_weights
from fitserve_training.config import RunConfig
from fitserve_training.errors import UsageError
from fitserve_training.fit import EpochReport
from fitserve_training.progress import Display
from fitserve_training.rundir import RunWriter


class Recorder:
    """Writes what the loop reports, and a checkpoint where enough time has passed.

    Keeps `test_outputs`, those of the epoch that was tested last; None before there is one.
    """

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        writer: RunWriter,
        display: Display,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._model, self._optimizer = config, model, optimizer
        self._writer, self._display, self._clock = writer, display, clock
        self._saved_at = clock()
        self.test_outputs: Tensor | None = None
        self._events = EventWriter(writer.path / rundir.EVENTS) if config.tensorboard else None

    def on_progress(self, epoch: int, share: float) -> None:
        """Moves the display on."""
        self._display.progress(epoch, share)

    def on_epoch(self, report: EpochReport) -> None:
        """Writes the epoch's lines, best weights where the run selects, and its checkpoint last, so none is ahead."""
        if report.metrics:
            self.test_outputs = report.test_outputs
            self._writer.append(rundir.METRICS, [report.metrics])
            self._writer.append(rundir.CURVE, [{"epoch": at, **metrics} for at, metrics in report.points])
            if self._events:
                self._events.write(report)
        if report.is_best:
            save_weights(self._writer.path / rundir.BEST, self._model)
        if report.is_last or self._clock() - self._saved_at >= self._config.checkpoint_every_s:
            path = self._writer.path / rundir.CHECKPOINT
            save_checkpoint(path, self._model, self._optimizer, vars(report.progress))
            self._saved_at = self._clock()
        self._display.epoch(report)

    def close(self) -> None:
        """Ends the event file and the display."""
        if self._events:
            self._events.close()
        self._display.close()


class Follower:
    """Observes for a worker that does not lead: writes and shows nothing."""

    def on_progress(self, epoch: int, share: float) -> None:
        """Says nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Writes nothing."""


class EventWriter:
    """TensorBoard's event files, one scalar per metric and epoch."""

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, report: EpochReport) -> None:
        """Writes an epoch's metrics."""
        for key, value in report.metrics.items():
            if key != "epoch":
                self._writer.add_scalar(key.replace("_", "/", 1), value, report.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def check_tensorboard() -> None:
    """Checks that there is TensorBoard.

    Raises:
        UsageError: the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UsageError(
            "setting 'tensorboard': expected the package tensorboard (pip install 'fitserve[tensorboard]'), found none"
        )
