"""Signals end the command with one sentence, and promise --resume only where it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTED_AT = """
import os, sys
from fitserve_training import launch, recording
from fitserve_training.cli import main

def die(*_):
    first, *others = {signals}
    try:
        os.kill(os.getpid(), first)
    finally:
        for number in others:
            os.kill(os.getpid(), number)
{late}

recording.Recorder.{method} = die
sys.exit(main(["linreg", "--run-dir", sys.argv[1], "--set", "checkpoint_every_s=0", "--compile", "off"]))
"""

AFTER_A_CHECKPOINT = """
on_progress, calls = recording.Recorder.on_progress, []
def on_second(self, epoch, share):
    if epoch == 3:
        die()
"""


def interrupted(run_dir: Path, signals: list[int], after_checkpoint: bool) -> subprocess.CompletedProcess[str]:
    program = INTERRUPTED_AT.format(signals=signals, late=AFTER_A_CHECKPOINT, method="on_progress")
    if after_checkpoint:
        program = program.replace("on_progress = die", "on_progress = on_second")
    return subprocess.run(
        [sys.executable, "-c", program, str(run_dir)], capture_output=True, text=True, check=False, env=os.environ
    )


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)],
)
def test_a_signal_ends_with_one_sentence(signals: list[int], code: int, tmp_path: Path) -> None:
    done = interrupted(tmp_path / "run", [int(each) for each in signals], after_checkpoint=False)

    assert done.returncode == code, done.stderr
    assert done.stderr == ("fitserve-train: interrupted before the first checkpoint; start it again\n")


def test_resume_is_promised_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    done = interrupted(tmp_path / "run", [int(signal.SIGINT)], after_checkpoint=True)

    assert (done.returncode, done.stderr) == (
        130,
        "fitserve-train: interrupted; --resume goes on from the last checkpoint\n",
    )
