"""Progress and pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from fitserve_training.fit import EpochReport, Progress
from fitserve_training.plots import draw_curves
from fitserve_training.progress import BarDisplay, PlainDisplay, metrics_text, short_text


def test_plain_lines_are_about_twenty() -> None:
    lines: list[str] = []
    display = PlainDisplay(5000, lines.append)

    for epoch in range(1, 5001):
        display.epoch(EpochReport(Progress(epoch, epoch == 5000), {"epoch": epoch, "train_loss": 1.0}))
    display.close()

    assert len(lines) == 21
    assert lines[-1] == "epoch 5000/5000: train loss 1"


def test_metrics_in_words() -> None:
    metrics = {"epoch": 1, "train_loss": 0.51234, "test_accuracy": 0.8, "train_mae": 3.0, "examples_per_s": 12345.6}
    assert metrics_text(metrics) == "train loss 0.5123, test accuracy 0.8, 12,346 examples/s"


def test_few_words_fit_beside_a_bar() -> None:
    metrics = {"train_loss": 0.51234, "train_accuracy": 0.8, "test_accuracy": 0.81, "examples_per_s": 123456.7}
    assert short_text(metrics) == "loss 0.512 acc 0.800 test acc 0.810 123,457 examples/s"


def test_the_bar_runs_to_its_end() -> None:
    display = BarDisplay(2)
    for epoch in (1, 2):
        display.progress(epoch, 0.5)
        display.epoch(EpochReport(Progress(epoch, epoch == 2), {"train_loss": 1.0}))
    assert display.is_complete
    display.close()


def test_curves_are_svg_and_the_same_twice(tmp_path: Path) -> None:
    rows = [{"epoch": e, "train_loss": 1 / e, "test_loss": 2 / e, "test_accuracy": None} for e in (1, 2, 3)]
    points = [{"epoch": e / 5, "train_loss": 5 / e} for e in range(1, 16)]

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawn = draw_curves(rows, points, tmp_path / name)
        assert [path.name for path in drawn] == ["loss.svg"]

    assert (tmp_path / "a" / "loss.svg").read_bytes() == (tmp_path / "b" / "loss.svg").read_bytes()
    assert ElementTree.parse(tmp_path / "a" / "loss.svg").getroot().tag.endswith("svg")
