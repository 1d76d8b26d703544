"""Structured logs: one record is one line, whatever its strings hold."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from fitserve_contract.printable import printable

FORMATS: Final = ("auto", "json", "text")
LEVELS: Final = ("debug", "info", "warning", "error")

_OWN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_log = logging.getLogger(__name__)


def configure(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Sends every record of the process to a stream.

    Args:
        log_format: "json", "text", or "auto": text on a terminal, JSON elsewhere.
        level: One of LEVELS; records below it are dropped.
        stream: Where to; None: stderr.
    """
    target = sys.stderr if stream is None else stream
    is_text = log_format == "text" or (log_format == "auto" and target.isatty())
    handler = _Handler(target)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A closed pipe costs its records, never the server.
    logging.raiseExceptions = False


def take_over() -> None:
    """Has warnings and exceptions that nobody caught be records too: they hold names from files as well."""
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.unraisablehook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)


def forget_unwritten() -> None:
    """Drops what a closed pipe did not take of stdout and stderr: the interpreter would end with exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _Handler(logging.StreamHandler[Any]):
    """Writes records without ever waiting: where nobody reads, records are dropped, and their number is told later."""

    def __init__(self, target: TextIO) -> None:
        self._pipe = _Unblocking.of(target)
        super().__init__(self._pipe or target)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, after the number of those that were dropped."""
        if self._pipe is not None and (count := self._pipe.dropped_count):
            self._pipe.dropped_count = 0
            text = f"{count} log records were dropped: nobody read them"
            super().emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None))
            if self._pipe.dropped_count:
                # Nobody reads yet: this record goes, too.
                self._pipe.dropped_count = count + 1
                return
        super().emit(record)


class _Unblocking:
    """Writes whole lines to a descriptor of its own that does not block; what is not taken at once is dropped.

    A line that was taken in part goes on first. The descriptor is opened anew: a flag on the old one would hold for all
    who share it. Source: open(2), pipe(7).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.dropped_count = 0

    @classmethod
    def of(cls, target: TextIO) -> _Unblocking | None:
        """Opens a stream anew; None where it cannot block, or cannot be opened."""
        try:
            number = target.fileno()
            mode = os.fstat(number).st_mode
            if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
                return None
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return cls(os.open(f"/proc/self/fd/{number}", flags))
        except (OSError, ValueError, AttributeError):
            return None

    def write(self, text: str) -> int:
        """Writes a record's lines, or drops them."""
        content = text.encode(errors="backslashreplace")
        if self._rest:
            self._rest = self._rest[self._taken(self._rest) :]
        if self._rest or not (taken := self._taken(content)):
            self.dropped_count += 1
        else:
            self._rest = content[taken:]
        return len(text)

    def flush(self) -> None:
        """Does nothing: everything is written at once."""

    def _taken(self, content: bytes) -> int:
        try:
            return os.write(self._descriptor, content)
        except BlockingIOError:
            return 0


class JsonFormatter(logging.Formatter):
    """A record as one JSON object in ASCII: time, level, logger, message, then what the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """Gives the line without its end."""
        entry: dict[str, object] = {
            "time": _time_text(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS and key not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """A record for people: what would break its line is escaped; a traceback follows, each line marked."""

    def format(self, record: logging.LogRecord) -> str:
        """Gives the text without its end."""
        message = printable(record.getMessage())
        line = f"{_time_text(record)} {record.levelname.lower():7} {message}"
        if not record.exc_info:
            return line
        trace = self.formatException(record.exc_info).split("\n")
        return "\n".join([line, *(f"    | {printable(part)}" for part in trace)])


def _uncaught(*failed: Any) -> None:
    _log.critical("an exception was not caught", exc_info=failed)


def _time_text(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
