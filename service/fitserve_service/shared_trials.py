"""One trial for all workers: what a canary said of a version's files is written down where the others find it.

    <key>.trial   in the folder that the parent of the workers owns; locked by whoever tries the version out, then its
                  verdict as JSON: why it was refused (empty: it was not), and when, monotonic seconds of this machine

Locks are the kernel's: where the process that tries it out dies, the next one does it instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from fitserve_contract.repository import VersionPath
from fitserve_service.loading.load_errors import LoadError, load_error
from fitserve_service.loading.version_files import see_files
from fitserve_service.model_config import Overrides

_MAX_VERDICT_BYTES: Final = 1 << 16


class Trials(Protocol):
    """Tries versions out; see `canary_trials.Canaries`."""

    def try_out(self, path: VersionPath, overrides: Overrides) -> None:
        """Loads and runs a version where nothing but it can be lost; raises LoadError."""
        ...


class SharedTrials:
    """Trials of which one serves all processes that share a folder. Thread-safe.

    A pass holds as long as the files are what they were. A refusal is only for those who waited for it: whoever asks
    later wants it tried again.

    Args:
        trials: Tries out what nobody has yet.
        folder: The folder that the processes share.
        clock: Monotonic seconds, the same in all processes.
    """

    def __init__(self, trials: Trials, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._trials = trials
        self._folder = folder
        self._clock = clock

    def try_out(self, path: VersionPath, overrides: Overrides) -> None:
        """Tries a version out, or takes the verdict of a trial that has just been.

        Raises:
            LoadError: it was refused; see `canary_trials.Canaries.try_out`.
        """
        asked_s = self._clock()
        name = self._folder / f"{_key(path, overrides)}.trial"
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            # Without room for a verdict everybody tries for himself.
            return self._trials.try_out(path, overrides)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            verdict = _verdict(file.read(_MAX_VERDICT_BYTES), asked_s)
            if verdict is None:
                verdict = self._try_out(path, overrides)
                _write(file, {"refusal": verdict[0], "kind": verdict[1], "ended_s": self._clock()})
        refusal, kind = verdict
        if refusal:
            raise load_error(refusal, kind)
        return None

    def _try_out(self, path: VersionPath, overrides: Overrides) -> tuple[str, str]:
        try:
            self._trials.try_out(path, overrides)
        except LoadError as error:
            return str(error), error.kind
        return "", ""


def _key(path: VersionPath, overrides: Overrides) -> str:
    """Names what is tried out: the version, what it is loaded by, and its files as far as a look at them goes."""
    said = repr((path.model, path.version, sorted(overrides.values.items()), see_files(path)))
    return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()


def _verdict(content: bytes, asked_s: float) -> tuple[str, str] | None:
    """Reads a verdict, refusal and kind: empty for a pass; None of a refusal that this caller did not wait for."""
    try:
        verdict: Any = json.loads(content)
        refusal, kind, ended_s = str(verdict["refusal"]), str(verdict["kind"]), float(verdict["ended_s"])
    except (ValueError, KeyError, TypeError):
        return None
    return (refusal, kind) if not refusal or ended_s >= asked_s else None


def _write(file: Any, verdict: dict[str, Any]) -> None:
    content = json.dumps(verdict).encode()
    try:
        file.seek(0)
        file.truncate()
        file.write(content)
    except OSError:
        # A verdict that is torn is none.
        return
