"""Training as whole processes: how one is started, and a second one with a filled compile cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_COMPILED: Final = ("lenet", "--data", "digits", "--device", "cpu", "--set", "epochs=1")


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


def _first_step(run_dir: Path, mode: str, environment: Mapping[str, str]) -> float:
    call_training([*_COMPILED, "--compile", mode, "--run-dir", str(run_dir)], environment)
    record = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["compile"]
    if record["used"] != mode:
        raise RuntimeError(f"compile {mode}: expected it to be used, got {record['used']}: {record['reason']}")
    return float(record["first_step_s"])


def start_training(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Starts `fitserve-train` with these arguments; what it says is on the process's `stdout`."""
    return subprocess.Popen(_command(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def call_training(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs `fitserve-train` with these arguments to its end.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    command = _command(arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()[-500:]}")


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "fitserve_training.cli", *arguments]
