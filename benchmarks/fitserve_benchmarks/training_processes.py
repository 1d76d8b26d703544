"""Training as whole processes: killed and resumed, and started a second time with a filled compile cache."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_RUN: Final = (
    *("softmax", "--data", "digits", "--device", "cpu"),
    *("--set", "epochs=500", "--set", "momentum=0.9", "--set", "lr_schedule=cosine", "--set", "lr_warmup_steps=30"),
    *("--set", "checkpoint_every_s=0", "--set", "clip_norm=5", "--set", "micro_batch_size=100"),
)
_COMPILED: Final = ("lenet", "--data", "digits", "--device", "cpu", "--set", "epochs=1")


@dataclass(frozen=True)
class Kill:
    """One run that was killed.

    Args:
        after_s: Seconds from the start of training to the kill.
        epochs_done: Epochs of its last checkpoint; -1 where the run had ended before.
        is_identical: Whether the resumed run ended with the weights of the uninterrupted one, bit for bit.
    """

    after_s: float
    epochs_done: int
    is_identical: bool


def kill_and_resume(count: int, seed: int, say: Callable[[str], None]) -> list[Kill]:
    """Kills runs with SIGKILL at random moments of their training and resumes each.

    Raises:
        RuntimeError: a run that nobody killed failed.
    """
    stream, kills = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder, "straight")
        training_s = _whole(straight)
        expected = (straight / "weights.safetensors").read_bytes()
        for number in range(count):
            run_dir, after_s = Path(folder, f"run-{number}"), stream.uniform(0, training_s)
            epochs_done = _killed(run_dir, after_s)
            _finish(run_dir)
            kill = Kill(after_s, epochs_done, (run_dir / "weights.safetensors").read_bytes() == expected)
            kills.append(kill)
            say(f"killed after {after_s:.2f} s, {epochs_done} epochs: {'identical' if kill.is_identical else 'OTHER'}")
    return kills


def first_steps(modes: Sequence[str], say: Callable[[str], None]) -> dict[str, list[float]]:
    """Times the first step of two runs, compilation in it, by mode; the cache is empty before the first.

    Raises:
        RuntimeError: a run failed.
    """
    seconds: dict[str, list[float]] = {}
    for mode in modes:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder, "cache"))}
            environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
            seconds[mode] = [_first_step(Path(folder, str(turn)), mode, environment) for turn in (1, 2)]
        first, second = seconds[mode]
        say(f"compile {mode}: first step {first:.1f} s, with a filled cache {second:.1f} s ({second / first:.0%})")
    return seconds


def _first_step(run_dir: Path, mode: str, environment: dict[str, str]) -> float:
    _call([*_COMPILED, "--compile", mode, "--run-dir", str(run_dir)], environment)
    record = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["compile"]
    if record["used"] != mode:
        raise RuntimeError(f"compile {mode}: expected it to be used, got {record['used']}: {record['reason']}")
    return float(record["first_step_s"])


def _whole(run_dir: Path) -> float:
    process = _start(run_dir)
    _wait_for_training(process)
    started = time.monotonic()
    if process.wait() != 0:
        raise RuntimeError(f"the uninterrupted run failed with exit code {process.returncode}")
    return time.monotonic() - started


def _killed(run_dir: Path, after_s: float) -> int:
    process = _start(run_dir)
    _wait_for_training(process)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
    unfinished = run_dir.with_name(run_dir.name + ".unfinished")
    if not unfinished.is_dir():
        return -1
    path = unfinished / "checkpoints" / "last.safetensors"
    if not path.is_file():
        return 0
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return int(json.loads(file.metadata()["state"])["progress"]["epoch"])


def _finish(run_dir: Path) -> None:
    is_there = (run_dir.with_name(run_dir.name + ".unfinished") / "config.toml").is_file() or run_dir.is_dir()
    _call([*(["softmax", "--resume"] if is_there else _RUN), "--run-dir", str(run_dir)], dict(os.environ))


def _start(run_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fitserve_training.cli", *_RUN, "--run-dir", str(run_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for_training(process: subprocess.Popen[str]) -> None:
    """Reads until the line that comes right before training."""
    if process.stdout is None:
        raise RuntimeError("the run's output is not connected")
    for line in process.stdout:
        if line.startswith("device "):
            return
    raise RuntimeError(f"the run ended before it trained, exit code {process.wait()}")


def _call(arguments: Sequence[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "fitserve_training.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()[-500:]}")
