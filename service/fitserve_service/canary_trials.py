"""The server's side of canaries: each version is tried out in a throw-away process before the server loads it.

A process takes versions one after another, so that a thousand of them cost few starts. Where it dies, the version that
it was trying is tried again alone, in a fresh one: only what dies alone is to blame.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Final

from fitserve_contract.repository import VersionPath
from fitserve_contract.repository_view import RepositoryRoot, Root, root_of
from fitserve_service.loader import MAX_MODEL_BYTES
from fitserve_service.loading.load_errors import MEMORY, TIME, LoadEndedError, ShortageError, load_error, shortage_kind
from fitserve_service.loading.version_files import see_files
from fitserve_service.model_config import Overrides
from fitserve_service.process_memory import free_bytes, spent_s
from fitserve_service.runtime.run_limit import LARGEST_LIMIT_S
from fitserve_service.worker_link import Link, Message

_GROUP_SIZE: Final = 32
"""Versions that one process tries out before it is thrown away."""

_START_S: Final = 60.0

_LIMIT_S: Final = 30.0
_QUICK_START_S: Final = 2.0
_MOST_SLOWNESS: Final = 4.0
"""Where no limit is set: seconds where a trial's process starts within the quick time, in proportion where it starts
later, and never more than so many times as many."""

_MOST_STEPS: Final = 40
"""A whole trial ends after so many times the limit, whatever its process says."""

_BYTES_PER_S: Final = 20 << 20
"""A step's time grows with the version's size, as if it were read so slowly."""

_MEMORY_BYTES: Final = 2 << 30
_MEMORY_FACTOR: Final = 4
"""A version's usual memory: a base, and so many times its files: the bytes, the weights, optimized copies."""

_SHARE_OF_FREE: Final = 0.75
"""What needs more than usual is tried alone, with this share of the memory that is free."""

_SERVER_ONLY: Final = ("device", "batch_size_buckets", "versions", "keep_versions")
"""Overrides that a canary leaves out: it runs on the CPU, and not every size."""

_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

_STARVED_SHARE: Final = 0.75
"""A step that ran out of time and had less of a processor than this share of it was kept waiting by the machine."""

_END_S: Final = 2.0
_MOST_TRACE_CHARS: Final = 8_000

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
        limit_s: Seconds that loading and each run of one row may take, for a small version; None: 30, and up to four
            times as many where processes start slowly.
        memory_bytes: Most memory that a version may take; 0: three quarters of what is free.
        is_final: What a canary refuses the server need not try: it would run on the same kind of device.
        terms: What the server loads by.
    """

    def __init__(
        self,
        repository: Root,
        *,
        limit_s: float | None,
        is_final: bool,
        memory_bytes: int = 0,
        terms: Terms | None = None,
    ) -> None:
        self._repository = root_of(repository)
        self._terms = terms or Terms()
        self._limit_s = limit_s
        self._memory_bytes = memory_bytes
        self._alone = threading.Lock()
        self._is_final = is_final
        self._lock = threading.Lock()
        self._idle: list[_Canary] = []
        self._live: set[_Canary] = set()
        self._is_closed = False

    def try_out(self, path: VersionPath, overrides: Overrides) -> None:
        """Loads and runs a version where nothing but it can be lost.

        Raises:
            IncompleteError: a file is missing, or not what its checksums say.
            ShortageError: there was too little memory, or the machine was too busy, to tell.
            LoadError: it killed the process, did not end, or cannot be loaded.
            LoadEndedError: `close` was called.
        """
        usual_bytes = _MEMORY_BYTES + _MEMORY_FACTOR * _size_bytes(path)
        bound_bytes, allowed = self._most_bytes(free_bytes())
        verdict = self._try_out(path, overrides, min(usual_bytes, bound_bytes))
        if verdict.is_out_of_memory and usual_bytes < bound_bytes:
            # One at a time: each may take most of what is free.
            with self._alone:
                bound_bytes, allowed = self._most_bytes(free_bytes())
                verdict = self._try_out(path, overrides, bound_bytes)
        if verdict.is_out_of_memory and not verdict.is_deadly:
            more_bytes = 2 * bound_bytes
            text = (
                f"canary: expected the model to load and run in {_gib(bound_bytes)} of memory, {allowed}, and it needs "
                f"more: {verdict.refusal}; free memory, or allow it more: --canary-memory-bytes {more_bytes}"
            )
            raise load_error(text, "" if self._memory_bytes else MEMORY)
        if verdict.refusal and (self._is_final or verdict.is_deadly or verdict.kind):
            raise load_error(verdict.refusal, verdict.kind)

    def close(self) -> None:
        """Ends all processes, also those that are trying something out."""
        with self._lock:
            self._is_closed = True
            live = list(self._live)
        for canary in live:
            self._drop(canary)

    def _try_out(self, path: VersionPath, overrides: Overrides, memory_bytes: int) -> _Verdict:
        canary = self._take()
        message = self._ask(canary, path, overrides, memory_bytes)
        # What it may read was settled when it started: it sees nothing of a folder that took the repository's place.
        is_stale = message is not None and message.get("is_stale") is True
        if is_stale or (message is None and canary.tried_count > 1 and not canary.is_late):
            self._drop(canary)
            canary = self._start()
            message = self._ask(canary, path, overrides, memory_bytes)
        if message is None and self._is_closed:
            raise LoadEndedError(f"the server ended while it tried out {path.model} version {path.version}")
        if message is None:
            canary.await_end()
            self._drop(canary)
            is_out_of_memory = not canary.is_late and canary.signal() is signal.SIGABRT
            kind = canary.shortage()
            return _Verdict(canary.how_it_ended(), kind, is_out_of_memory=is_out_of_memory, is_deadly=True)
        self._give_back(canary)
        refusal, is_out_of_memory = str(message.get("refusal", ""))[:2_000], message.get("is_out_of_memory") is True
        kind = str(message.get("refusal_kind", ""))[:20]
        if trace := message.get("trace"):
            _log.error("%s version %d: trial failed\n%s", path.model, path.version, str(trace)[:_MOST_TRACE_CHARS])
        return _Verdict(refusal, kind, is_out_of_memory=bool(refusal) and is_out_of_memory, is_deadly=False)

    def _ask(self, canary: _Canary, path: VersionPath, overrides: Overrides, memory_bytes: int) -> Message | None:
        limit_s = self._limit_s or _LIMIT_S * canary.slowness
        step_s = limit_s + _size_bytes(path) / _BYTES_PER_S
        values = {name: value for name, value in overrides.values.items() if name not in _SERVER_ONLY}
        order: Message = {
            "model": path.model,
            "version": path.version,
            "overrides": values,
            "memory_bytes": memory_bytes,
            "cpu_s": _MOST_STEPS * step_s * (os.cpu_count() or 1),
        }
        return canary.ask(order, step_s)

    def _most_bytes(self, unused_bytes: int) -> tuple[int, str]:
        """Returns the most memory that a version may take, and where the number comes from."""
        if self._memory_bytes:
            return self._memory_bytes, "as --canary-memory-bytes says"
        return int(unused_bytes * _SHARE_OF_FREE), f"three quarters of what is free ({_gib(unused_bytes)})"

    def _take(self) -> _Canary:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _start(self) -> _Canary:
        try:
            canary = _Canary(self._repository, self._terms)
        except OSError as error:
            text = f"canary: expected to start a process that tries models out: {error.strerror}"
            raise ShortageError(text, shortage_kind(error) or MEMORY) from None
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


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What became of a trial.

    Args:
        refusal: Why the version is refused; empty: it ran.
        kind: Of the refusal; see `LoadError.kind`.
        is_out_of_memory: With more memory it might have run.
        is_deadly: It ended the process, or had to be ended with it.
    """

    refusal: str
    kind: str
    is_out_of_memory: bool
    is_deadly: bool


class _Canary:
    """One process. Used by one thread at a time, but for `end`."""

    def __init__(self, repository: RepositoryRoot, terms: Terms) -> None:
        own, other = socket.socketpair()
        with contextlib.ExitStack() as on_failure, other:
            on_failure.callback(own.close)
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
            on_failure.pop_all()
        begin_s = time.monotonic()
        self._link = Link(own)
        outside = repository.follow_links
        places = {"repository": str(repository.path.absolute()), "follow_links": outside and str(outside.absolute())}
        self._link.send("begin", **places, **asdict(terms))
        self.tried_count = 0
        self.is_late = False
        self._is_starved = False
        self._limit_s = 0.0
        ready = self._receive(_START_S)
        self.slowness = min(max((time.monotonic() - begin_s) / _QUICK_START_S, 1.0), _MOST_SLOWNESS)
        self._is_ready = ready is not None
        if ready is not None:
            _log.debug("canary %d: %s", self._process.pid, ready.get("in_force"))

    def ask(self, order: Message, limit_s: float) -> Message | None:
        """Has a version tried out; None where the process died of it, or was ended because a step took too long."""
        self.tried_count += 1
        self._limit_s = allowed_s = limit_s
        until_s = time.monotonic() + _MOST_STEPS * limit_s
        message = self._receive(allowed_s) if self._link.send("try_out", **order) else None
        while message is not None and message.get("kind") == "step":
            expected_s = message.get("expected_s")
            allowed_s = max(limit_s, expected_s) if isinstance(expected_s, float) else limit_s
            message = self._receive(max(min(allowed_s, until_s - time.monotonic()), 0.0))
        return message

    def await_end(self) -> None:
        """Waits for a process that has closed its end of the link: how it ended is what is told of the version."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._link.close()

    def how_it_ended(self) -> str:
        """Tells, of a process that has ended, what the version did to it."""
        if self.is_late and not self._is_ready:
            hint = "is the machine overloaded? Load without a trial: --canary off"
            return f"canary: expected the process that tries models out to start within {_START_S:.0f} s: {hint}"
        if self.is_late:
            more_s = min(round(4 * self._limit_s) or 1, int(LARGEST_LIMIT_S))
            return (
                f"canary: expected the model to load, and then to run a row, within {self._limit_s:.0f} s each, and "
                f"had to end it: does it loop for ever? If it is only slow, allow it more: --canary-limit-s {more_s}"
            )
        found = self.signal()
        how = found.name if found is not None else f"exit code {self._process.wait()}"
        hint = ": did the machine run out of memory?" if found is signal.SIGKILL else ""
        return f"canary: the model killed the process that tried it out ({how}{hint})"

    def shortage(self) -> str:
        """Names what the machine had too little of, of a process that has ended; empty: the version is to blame."""
        if self.is_late:
            return TIME if self._is_starved or not self._is_ready else ""
        return MEMORY if self.signal() is signal.SIGKILL else ""

    def signal(self) -> signal.Signals | None:
        """Returns the signal that ended the process; None where it ended otherwise."""
        code = self._process.wait()
        return signal.Signals(-code) if -code in list(signal.Signals) else None

    def _receive(self, limit_s: float) -> Message | None:
        late = threading.Timer(limit_s, self._end_late, (limit_s, spent_s(self._process.pid)))
        late.daemon = True
        try:
            late.start()
        except RuntimeError:
            # No thread is left that would end it in time.
            self._process.kill()
            return None
        try:
            # What a model has taken over may send anything.
            message = self._link.receive()
            return message if isinstance(message, dict) else None
        except (ValueError, RecursionError):
            return None
        finally:
            late.cancel()

    def _end_late(self, limit_s: float, before_s: float) -> None:
        # A model that only takes long, or never ends, has had a processor all the time.
        self._is_starved = spent_s(self._process.pid) - before_s < _STARVED_SHARE * limit_s
        self.is_late = True
        self._process.kill()


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"


def _size_bytes(path: VersionPath) -> int:
    """Sums the sizes of a version's files, links followed; a file that cannot be seen counts nothing."""
    size_bytes = sum(entry.marks.size for entry in see_files(path).entries)
    # A file may lie about its size: it need not take any room on the disk.
    return min(size_bytes, MAX_MODEL_BYTES)
