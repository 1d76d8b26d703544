"""A run's directory: built beside its place under the name `<run>.unfinished`, then moved there whole.

    config.toml         every setting, resolved
    recipe.py           a copy of the user's own recipe, which the run goes on with whatever becomes of the file
    environment.json    versions, machine, device
    data.json           how many examples each split has, and a digest, so that a run goes on with no others
    metrics.jsonl       a line per logged epoch
    curve.jsonl         five points per logged epoch while it trains
    summary.json        last values, learned parameters, data, device, compile mode
    weights.safetensors final weights
    checkpoints/        last.safetensors: resumable state, which a finished run is trained longer from;
                        best.safetensors: weights of the lowest validation loss, where the run selects by it
    loss.svg …          curves
    report.html         all of it on one page
    tensorboard/        events, where asked for

A finished run is replaced only by a finished one. An unfinished one goes on with --resume and is otherwise started
anew. A folder is an unfinished run once it has its config.toml, which is written after all else that it begins with.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitserve_training.errors import UsageError

CONFIG = "config.toml"
RECIPE = "recipe.py"
ENVIRONMENT = "environment.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
CURVE = "curve.jsonl"
SUMMARY = "summary.json"
WEIGHTS = "weights.safetensors"
CHECKPOINT = Path("checkpoints") / "last.safetensors"
BEST = Path("checkpoints") / "best.safetensors"
EVENTS = "tensorboard"
REPORT = "report.html"
_SUFFIX = ".unfinished"


def unfinished_path(run_dir: Path) -> Path:
    """Says where a run is built before it is moved to `run_dir`.

    Raises:
        UsageError: `run_dir` is the root of the file system.
    """
    place = run_dir.resolve()
    if not place.name:
        raise UsageError(f"run directory {run_dir}: expected a directory below the root")
    return place.with_name(place.name + _SUFFIX)


def is_finished(run_dir: Path) -> bool:
    """Says whether `run_dir` holds a finished run."""
    return (run_dir / SUMMARY).is_file() and (run_dir / CONFIG).is_file()


def kept_recipe(folder: Path) -> bytes | None:
    """Gives the user's own recipe as it was when the run of this folder began; None where the catalogue's was run.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return (folder / RECIPE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"run file {folder / RECIPE}: cannot be read: {error.strerror}") from None


class RunWriter:
    """Writes one run; holds a lock on its directory until it is closed. One process at a time may write a run."""

    def __init__(self, run_dir: Path, is_resumed: bool) -> None:
        """Takes or makes the unfinished directory.

        Raises:
            UsageError: the place holds something that is no run, another process writes this run, or there is nothing
                to resume.
        """
        self._run_dir = run_dir
        self.path = unfinished_path(run_dir)
        if run_dir.exists() and not is_finished(run_dir) and any(run_dir.iterdir() if run_dir.is_dir() else [run_dir]):
            raise UsageError(f"run directory {run_dir}: expected a run or nothing, found something else there")
        if is_resumed and not (self.path / CONFIG).is_file():
            raise UsageError(f"run directory {run_dir}: expected an unfinished run to resume, found none")
        if self.path.exists() and not is_resumed:
            self._lock = _lock(self.path)
            (self.path / CONFIG).unlink(missing_ok=True)
            shutil.rmtree(self.path)
            os.close(self._lock)
        (self.path / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)

    def close(self) -> None:
        """Gives the lock back. What is unfinished stays for --resume."""
        os.close(self._lock)

    def give_up(self) -> str:
        """Leaves what can be resumed and removes what cannot; returns which, for the error text."""
        for part in self.path.rglob(".*.part"):
            part.unlink()
        if (self.path / CHECKPOINT).is_file() and (self.path / CONFIG).is_file():
            return f"{self.path} is as at its last checkpoint, and --resume goes on there"
        shutil.rmtree(self.path)
        return f"the run in {self._run_dir} stays as it was" if is_finished(self._run_dir) else "nothing was kept"

    def reopen(self) -> None:
        """Copies from the finished run what it goes on with; that run stays until this one is finished."""
        for name in (Path(METRICS), Path(CURVE), CHECKPOINT, BEST, *_files_below(self._run_dir, EVENTS)):
            if (self._run_dir / name).is_file():
                _copy(self._run_dir / name, self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Writes a file whole: aside, flushed, renamed."""
        part = self.path / f".{name}.part"
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path / name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes indented JSON; numbers that are not finite become null."""
        self.write_text(name, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Appends JSON lines."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)

    def keep_until(self, epoch: int) -> None:
        """Drops the lines of epochs after `epoch`, which a resumed run will write again."""
        for name in (METRICS, CURVE):
            rows = [row for row in read_lines(self.path / name) if row["epoch"] <= epoch]
            self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def finish(self) -> Path:
        """Moves the run to its place; a finished run that was there is moved away first and deleted last."""
        place = self._run_dir.resolve()
        replaced = place.with_name(f"{place.name}.replaced-{os.getpid()}")
        if place.exists():
            os.rename(place, replaced)
        os.rename(self.path, place)
        for left in {replaced, *_replaced(place)}:
            shutil.rmtree(left, ignore_errors=True)
        return self._run_dir


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a last line that a kill cut short is left out, and so is a file that is not there."""
    if not path.is_file():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of a run.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"run file {path}: cannot be read: {error}") from None
    return value


def _replaced(place: Path) -> list[Path]:
    """Finds runs that were moved away from `place` by processes that were killed before they deleted them."""
    pattern = re.compile(re.escape(place.name) + r"\.replaced-\d+")
    return [path for path in place.parent.iterdir() if pattern.fullmatch(path.name) and is_finished(path)]


def _files_below(folder: Path, name: str) -> list[Path]:
    return [path.relative_to(folder) for path in (folder / name).rglob("*")]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written)
        written.flush()
        os.fsync(written.fileno())


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"run directory {path}: another process is writing this run") from None
    return descriptor


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
