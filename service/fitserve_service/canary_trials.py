"""The server's side of canaries: each version is tried out in a throw-away process before the server loads it.

A process takes versions one after another, so that a thousand of them cost few starts. Where it dies, the version that
it was trying is tried again alone, in a fresh one: only what dies alone is to blame.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fitserve_contract.repository import VersionPath
from fitserve_service.loader import MAX_MODEL_BYTES, LoadError
from fitserve_service.model_config import Overrides
from fitserve_service.worker_link import Link, Message

_GROUP_SIZE: Final = 32
"""Versions that one process tries out before it is thrown away."""

_START_S: Final = 60.0
_BYTES_PER_S: Final = 20 << 20
"""A version's time grows with its size, as if it were read so slowly."""

_MEMORY_BYTES: Final = 2 << 30
_MEMORY_FACTOR: Final = 4
"""A version's memory: a base, and so many times its files: the bytes, the weights, optimized copies."""

_SERVER_ONLY: Final = ("device", "batch_size_buckets", "versions", "keep_versions")
"""Overrides that a canary leaves out: it runs on the CPU, and not every size."""

_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a version is loaded by that its own folder does not say; see `Loader`.

    Args:
        variant: "auto", "fp32" or a variant's name.
        is_proof_required: Refuses versions without manifest, checksums and probe.
    """

    variant: str = "auto"
    is_proof_required: bool = False


class Canaries:
    """Tries versions out, each call of `try_out` in a process of its own at that time. Thread-safe.

    Args:
        repository: The model repository.
        limit_s: Time that a small version may take to load and run.
        is_final: What a canary refuses the server need not try: it would run on the same kind of device.
        terms: What the server loads by.
    """

    def __init__(self, repository: Path, *, limit_s: float, is_final: bool, terms: Terms | None = None) -> None:
        self._repository = repository
        self._terms = terms or Terms()
        self._limit_s = limit_s
        self._is_final = is_final
        self._lock = threading.Lock()
        self._idle: list[_Canary] = []
        self._live: set[_Canary] = set()
        self._is_closed = False

    def try_out(self, path: VersionPath, overrides: Overrides) -> None:
        """Loads and runs a version where nothing but it can be lost.

        Raises:
            LoadError: it killed the process, did not end, wanted too much memory, or cannot be loaded.
        """
        order = self._order(path, overrides)
        canary = self._take()
        verdict = canary.ask(order, self._time_s(path))
        if verdict is None and canary.tried_count > 1 and not canary.is_late:
            self._drop(canary)
            canary = self._start()
            verdict = canary.ask(order, self._time_s(path))
        if verdict is None:
            self._drop(canary)
            raise LoadError(canary.how_it_ended())
        self._give_back(canary)
        refusal, is_runaway = str(verdict.get("refusal", ""))[:2_000], verdict.get("is_runaway") is True
        if refusal and (self._is_final or is_runaway):
            raise LoadError(refusal)

    def close(self) -> None:
        """Ends all processes, also those that are trying something out."""
        with self._lock:
            self._is_closed = True
            live = list(self._live)
        for canary in live:
            self._drop(canary)

    def _take(self) -> _Canary:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _start(self) -> _Canary:
        canary = _Canary(self._repository, self._terms)
        with self._lock:
            self._live.add(canary)
            is_closed = self._is_closed
        if is_closed:
            self._drop(canary)
        return canary

    def _give_back(self, canary: _Canary) -> None:
        if canary.tried_count >= _GROUP_SIZE:
            return self._drop(canary)
        with self._lock:
            self._idle.append(canary)

    def _drop(self, canary: _Canary) -> None:
        with self._lock:
            self._live.discard(canary)
            if canary in self._idle:
                self._idle.remove(canary)
        canary.end()

    def _order(self, path: VersionPath, overrides: Overrides) -> Message:
        values = {name: value for name, value in overrides.values.items() if name not in _SERVER_ONLY}
        return {
            "model": path.model,
            "version": path.version,
            "overrides": values,
            "memory_bytes": min(_MEMORY_BYTES + _MEMORY_FACTOR * _size_bytes(path.folder), _machine_bytes() * 3 // 4),
            "cpu_s": self._time_s(path) * (os.cpu_count() or 1),
        }

    def _time_s(self, path: VersionPath) -> float:
        return self._limit_s + _size_bytes(path.folder) / _BYTES_PER_S


class _Canary:
    """One process. Used by one thread at a time, but for `end`."""

    def __init__(self, repository: Path, terms: Terms) -> None:
        own, other = socket.socketpair()
        with other:
            # -P: no module of the directory that the server was started in takes the place of its own.
            command = (sys.executable, "-P", "-m", "fitserve_service.canary", str(other.fileno()), str(os.getpid()))
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                process_group=0,
                env=os.environ | _ENVIRONMENT,
            )
        self._link = Link(own)
        self._link.send("begin", repository=str(repository.resolve()), **asdict(terms))
        self.tried_count = 0
        self.is_late = False
        ready = self._receive(_START_S)
        if ready is not None:
            _log.debug("canary %d: %s", self._process.pid, ready.get("in_force"))

    def ask(self, order: Message, limit_s: float) -> Message | None:
        """Has a version tried out; None where the process died of it, or was ended because it took too long."""
        self.tried_count += 1
        return self._receive(limit_s) if self._link.send("try_out", **order) else None

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._link.close()

    def how_it_ended(self) -> str:
        """Tells, of a process that has ended, what the version did to it."""
        if self.is_late:
            return "canary: expected the model to load and run in its time, and had to end it: does it loop for ever?"
        code = self._process.wait()
        how = signal.Signals(-code).name if -code in list(signal.Signals) else f"exit code {code}"
        return f"canary: the model killed the process that tried it out ({how})"

    def _receive(self, limit_s: float) -> Message | None:
        late = threading.Timer(limit_s, self._end_late)
        late.daemon = True
        late.start()
        try:
            # What a model has taken over may send anything.
            message = self._link.receive()
            return message if isinstance(message, dict) else None
        except (ValueError, RecursionError):
            return None
        finally:
            late.cancel()

    def _end_late(self) -> None:
        self.is_late = True
        self._process.kill()


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size_bytes(folder: Path) -> int:
    """Sums the sizes of a version's files; a file that cannot be seen counts nothing."""
    try:
        size_bytes = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    except OSError:
        return 0
    # A file may lie about its size: it need not take any room on the disk.
    return min(size_bytes, MAX_MODEL_BYTES)
