"""How a run looks while it trains: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

from fitserve_training.fit import EpochReport

_PLAIN_LINES = 20


class Display(Protocol):
    """Shows progress; `close` leaves the screen as it should stay."""

    def progress(self, epoch: int, share: float) -> None:
        """A share (0..1) of the epoch is done."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch is over."""

    def close(self) -> None:
        """Nothing more will come."""


def open_display(epochs: int, say: Callable[[str], None]) -> Display:
    """Gives a bar where standard output is a terminal, else plain lines through `say`."""
    return BarDisplay(epochs) if sys.stdout.isatty() else PlainDisplay(epochs, say)


def metrics_text(metrics: dict[str, Any]) -> str:
    """Puts an epoch's metrics into words: losses, accuracies, examples/s."""
    parts = []
    for key, value in metrics.items():
        if key == "examples_per_s":
            parts.append(f"{value:,.0f} examples/s")
        elif key.endswith(("loss", "accuracy")):
            parts.append(f"{key.replace('_', ' ')} {value:.4g}")
    return ", ".join(parts)


def short_text(metrics: dict[str, Any]) -> str:
    """Puts them into few words, for a line that a bar shares."""
    words = {"train_loss": "loss {:.3g}", "train_accuracy": "acc {:.3f}", "test_accuracy": "test acc {:.3f}"}
    words["examples_per_s"] = "{:,.0f} examples/s"
    return " ".join(text.format(metrics[key]) for key, text in words.items() if key in metrics)


class PlainDisplay:
    """About twenty lines a run, whatever the number of epochs."""

    def __init__(self, epochs: int, say: Callable[[str], None]) -> None:
        self._epochs, self._say = epochs, say
        self._every = -(-epochs // _PLAIN_LINES)

    def progress(self, epoch: int, share: float) -> None:
        """Says nothing within an epoch."""

    def epoch(self, report: EpochReport) -> None:
        """Says the metrics of this epoch if it is one of those to be shown."""
        if report.metrics and (report.is_last or report.epoch == 1 or report.epoch % self._every == 0):
            self._say(f"epoch {report.epoch}/{self._epochs}: {metrics_text(report.metrics)}")

    def close(self) -> None:
        """Has nothing to clear."""


class BarDisplay:
    """One live line: bar, epoch, metrics, time left."""

    def __init__(self, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._epochs = epochs
        self._bar = Progress(
            TextColumn("{task.fields[epoch]}/{task.total:.0f}"),
            BarColumn(bar_width=10),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("starting", total=epochs, epoch=0)
        self._bar.start()

    def progress(self, epoch: int, share: float) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=epoch - 1 + share, epoch=epoch)

    def epoch(self, report: EpochReport) -> None:
        """Shows the metrics."""
        if report.metrics:
            self._bar.update(self._task, description=short_text(report.metrics))
        if report.is_last:
            self._bar.update(self._task, completed=self._epochs)

    @property
    def is_complete(self) -> bool:
        """Whether the bar has reached its end."""
        return self._bar.finished

    def close(self) -> None:
        """Stops redrawing; the last state stays on the screen."""
        self._bar.stop()
