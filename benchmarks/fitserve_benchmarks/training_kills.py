"""Training runs that are killed at random moments and resumed, against runs that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fitserve_benchmarks.environment import describe_environment
from fitserve_benchmarks.training_processes import call_training, start_training

RUNS: Final[Mapping[str, tuple[str, ...]]] = {
    "softmax: momentum, cosine, warm-up, clipping, accumulation": (
        *("softmax", "--data", "digits", "--set", "epochs=500", "--set", "momentum=0.9"),
        *("--set", "lr_schedule=cosine", "--set", "lr_warmup_steps=30"),
        *("--set", "clip_norm=5", "--set", "micro_batch_size=100"),
    ),
    "lenet: adam, linear": (*("lenet", "--data", "digits", "--set", "epochs=12", "--set", "lr_schedule=linear"),),
    "bert-multilabel: adamw, dropout, buckets": (
        *("bert-multilabel", "--data", "bundled", "--set", "epochs=6", "--set", "model.hidden_size=64"),
    ),
}
"""What is killed, in turns: every kind of state that a resumed run has to find again."""

_EVERY_RUN: Final = ("--device", "cpu", "--set", "checkpoint_every_s=0")
_MOST_MISSES: Final = 20
"""In a row, before a recipe is taken for one that always ends before its kill."""


@dataclass(frozen=True)
class Kill:
    """One run that SIGKILL ended.

    Args:
        run: A key of RUNS.
        after_s: Seconds from the start of training to the kill.
        epochs_done: Epochs of its last checkpoint.
        is_identical: Whether the resumed run ended with the weights of the uninterrupted one, bit for bit.
    """

    run: str
    after_s: float
    epochs_done: int
    is_identical: bool

    def __str__(self) -> str:
        """Puts it into a line for people."""
        verdict = "identical" if self.is_identical else "OTHER"
        return f"{self.run}: killed after {self.after_s:.2f} s, {self.epochs_done} epochs: {verdict}"


@dataclass(frozen=True)
class Straight:
    """A run that nobody killed: its weights, and how long it trained."""

    weights: bytes
    training_s: float


def kill_and_resume(count: int, seed: int, say: Callable[[str], None]) -> list[Kill]:
    """Kills runs with SIGKILL at random moments of their training, `count` in all, and resumes each.

    Where a run has ended before its moment nothing was killed, and another run takes its place.

    Raises:
        RuntimeError: a run that nobody killed failed, or no run of a recipe lives until it is to be killed.
    """
    stream, kills = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        straight = {run: _straight(Path(folder, f"straight-{place}"), run) for place, run in enumerate(RUNS)}
        for number in range(count):
            run = list(RUNS)[number % len(RUNS)]
            kills.append(_one(Path(folder, f"run-{number}"), run, straight[run], stream, say))
            say(str(kills[-1]))
    return kills


def save_kills(path: Path, kills: list[Kill], seed: int) -> None:
    """Writes the kills and what they were done on as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identical = sum(kill.is_identical for kill in kills)
    result = {"seed": seed, "runs": RUNS, "kill_count": len(kills), "identical_count": identical}
    result |= {"kills": [asdict(kill) for kill in kills], "environment": describe_environment()}
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _one(run_dir: Path, run: str, straight: Straight, stream: random.Random, say: Callable[[str], None]) -> Kill:
    training_s = straight.training_s
    for attempt in range(_MOST_MISSES):
        after_s, place = stream.uniform(0, training_s), run_dir.with_name(f"{run_dir.name}-{attempt}")
        lived_s = _lifetime(place, run, after_s)
        if lived_s is None:
            epochs_done = _epochs_done(place)
            _resume(place, run)
            return Kill(run, after_s, epochs_done, (place / "weights.safetensors").read_bytes() == straight.weights)
        say(f"{run}: had ended after {lived_s:.2f} s, before {after_s:.2f} s; once more")
        training_s = min(training_s, lived_s)
    raise RuntimeError(f"{run}: ended {_MOST_MISSES} times before it was to be killed")


def _arguments(run: str) -> list[str]:
    return [*RUNS[run], *_EVERY_RUN]


def _straight(run_dir: Path, run: str) -> Straight:
    process = start_training([*_arguments(run), "--run-dir", str(run_dir)])
    _wait_for_training(process)
    started = time.monotonic()
    process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the uninterrupted run of {run} failed with exit code {process.returncode}")
    return Straight((run_dir / "weights.safetensors").read_bytes(), time.monotonic() - started)


def _lifetime(run_dir: Path, run: str, after_s: float) -> float | None:
    """Kills a run so many seconds after it began to train; gives how long it trained where it had ended before."""
    process = start_training([*_arguments(run), "--run-dir", str(run_dir)])
    _wait_for_training(process)
    started = time.monotonic()
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run of {run} failed with exit code {process.returncode} before it was killed")
    return None if process.returncode == -signal.SIGKILL else time.monotonic() - started


def _epochs_done(run_dir: Path) -> int:
    from safetensors import safe_open

    path = _unfinished(run_dir) / "checkpoints" / "last.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, framework="np") as file:
        return int(json.loads(file.metadata()["state"])["progress"]["epoch"])


def _resume(run_dir: Path, run: str) -> None:
    """Goes on as a person would: with --resume where the run left anything, else anew."""
    is_there = (_unfinished(run_dir) / "config.toml").is_file() or run_dir.is_dir()
    call_training([*([RUNS[run][0], "--resume"] if is_there else _arguments(run)), "--run-dir", str(run_dir)])


def _unfinished(run_dir: Path) -> Path:
    return run_dir.with_name(run_dir.name + ".unfinished")


def _wait_for_training(process: subprocess.Popen[str]) -> None:
    """Reads until the line that comes right before training."""
    if process.stdout is None:
        raise RuntimeError("the run's output is not connected")
    for line in process.stdout:
        if line.startswith("device "):
            return
    raise RuntimeError(f"the run ended before it trained, exit code {process.wait()}")
