"""The audit log: who asked for which control action and what came of it, one JSON line each, only ever appended.

An action is on the disk as asked for before it is carried out, and its end before it is answered; one that cannot be
written down is not carried out. A thread of its own writes, so that a slow disk stalls no request.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

_log = logging.getLogger(__name__)

OnWritten: TypeAlias = Callable[[bool], None]
"""Told whether the record is on the disk: on the writer's thread, or at once where too many wait to be written."""

_MAX_TEXT_CHARS: Final = 256
_MAX_WAITING: Final = 4096
_REFUSALS_PER_S: Final = 20
"""Refused attempts that are written in a second; beyond, they are counted: strangers must not fill the disk."""


class AuditError(Exception):
    """The audit log cannot be written; the message names the file and says why."""


@dataclass(frozen=True, slots=True)
class Action:
    """One control action.

    Args:
        caller: Who asked, as `token:ci`; empty where nobody knows.
        peer: Address of the other end.
        method: Full name of the method.
        target: What the request says: model, version, label, shares, why.
        number: Ties the records of one action together.
    """

    caller: str
    peer: str
    method: str
    target: Mapping[str, Any]
    number: str = field(default_factory=lambda: secrets.token_hex(8))


class AuditTrail:
    """Writes records to a file, or to the server's log where there is none. `record` may be called on any thread."""

    def __init__(self, path: Path | None) -> None:
        """Opens the log.

        Args:
            path: The file, made with mode 0600 where it is not there; None: the server's log.

        Raises:
            AuditError: it cannot be opened.
        """
        self._file = None if path is None else AuditFile(path)
        self._records: queue.SimpleQueue[tuple[bytes, OnWritten] | None] = queue.SimpleQueue()
        self._budget = _Budget()
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def record(self, action: Action, event: str, on_written: OnWritten, *, result: str = "") -> None:
        """Writes one record.

        Args:
            action: What it is about.
            event: "asked", "done" or "refused".
            on_written: Told once whether it is on the disk.
            result: "OK" or the reason of the error, with "done" and "refused".
        """
        if self._records.qsize() >= _MAX_WAITING:
            on_written(False)
        else:
            self._records.put((_line(action, event, result), on_written))

    def refused(self, action: Action, result: str) -> None:
        """Writes down an attempt that was not let in; of a flood of them, a few in each second and how many more."""
        suppressed = self._budget.take(time.monotonic())
        if suppressed is None:
            return
        more = f"{result} (and {suppressed} more that are not listed)" if suppressed else result
        self.record(action, "refused", lambda _: None, result=more)

    def close(self) -> None:
        """Writes what is waiting, then closes the file; once only."""
        self._records.put(None)
        self._thread.join()
        if self._file is not None:
            self._file.close()

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            taken = [self._records.get()]
            while not self._records.empty():
                taken.append(self._records.get())
            is_open = None not in taken
            self._write([record for record in taken if record is not None])

    def _write(self, batch: list[tuple[bytes, OnWritten]]) -> None:
        lines = b"".join(line for line, _ in batch)
        is_written = True
        if self._file is None:
            for line, _ in batch:
                _log.info("audit: %s", line.decode().rstrip())
        else:
            try:
                self._file.append(lines)
            except OSError as error:
                is_written = False
                _log.error("audit: %s", AuditError(f"{self._file.path}: {error.strerror or error}"))
        for _, on_written in batch:
            try:
                on_written(is_written)
            except Exception:
                # One listener's trouble is neither the next one's nor the log's: without this thread no action would
                # ever be carried out.
                _log.exception("audit: a record's listener failed")


class AuditFile:
    """A file that lines are appended to, each on the disk before `append` returns. Used by one thread.

    It may be renamed at any time, as rotation does: the next line then goes into a new file of its name.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes it.

        Raises:
            AuditError: it cannot be opened for writing, or is no regular file.
        """
        self.path = path
        self._is_torn = False
        try:
            self._descriptor = _open(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise AuditError(f"--audit-log {path}: expected a file that can be appended to, got: {reason}") from None

    def append(self, lines: bytes) -> None:
        """Appends whole lines in one write, so that those of several processes never mix.

        Raises:
            OSError: they are not on the disk.
        """
        if not self._is_in_place():
            before, self._descriptor = self._descriptor, _open(self.path)
            os.close(before)
        # What a full disk has cut off is a line of its own, and no other's beginning.
        content = b"\n" + lines if self._is_torn else lines
        self._is_torn = True
        written = os.write(self._descriptor, content)
        if written != len(content):
            raise OSError(f"expected {len(content)} bytes to be written, got {written}")
        os.fsync(self._descriptor)
        self._is_torn = False

    def close(self) -> None:
        """Closes it."""
        os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        held = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


class _Budget:
    """Lets a few refusals through in each second, and counts the rest."""

    def __init__(self) -> None:
        self._second = 0
        self._taken = 0
        self._suppressed = 0

    def take(self, now_s: float) -> int | None:
        """Gives how many were left out since the last that was let through; None: this one is left out, too."""
        if int(now_s) != self._second:
            self._second, self._taken = int(now_s), 0
        if self._taken >= _REFUSALS_PER_S:
            self._suppressed += 1
            return None
        self._taken += 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    size = os.fstat(descriptor).st_size
    # A crash may have cut the last line off: the next must not be taken for its rest.
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")
    return descriptor


def _line(action: Action, event: str, result: str) -> bytes:
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "id": action.number,
        "caller": action.caller,
        "peer": action.peer,
        "action": action.method,
        "target": {key: _short(value) for key, value in action.target.items()},
    }
    if result:
        entry["result"] = result
    return json.dumps(entry).encode() + b"\n"


def _short(value: Any) -> Any:
    """Cuts what a caller may have made long."""
    if isinstance(value, str):
        return value[:_MAX_TEXT_CHARS]
    if isinstance(value, dict):
        return {str(key)[:_MAX_TEXT_CHARS]: _short(each) for key, each in list(value.items())[:32]}
    if isinstance(value, list):
        return [_short(each) for each in value[:32]]
    return value
