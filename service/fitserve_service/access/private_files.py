"""Files that hold secrets, or decide who is let in: read whole, only where nobody else may touch them, and watched."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

MAX_BYTES: Final = 1 << 20
_FOR_OTHERS: Final = stat.S_IWGRP | stat.S_IRWXO


class PrivateFileError(Exception):
    """A file that cannot be used; the message names it, what was expected and what was found, and nothing of it."""


class Mark(NamedTuple):
    """What tells one content of a file from the next without reading it."""

    modified_ns: int
    size_bytes: int
    inode: int


class Content(NamedTuple):
    """A file as it was at one moment."""

    data: bytes
    mark: Mark


def mark_of(path: Path) -> Mark | None:
    """Looks at a file without reading it; None where there is none."""
    try:
        return _mark(os.stat(path))
    except (OSError, ValueError):
        return None


def read_private(what: str, path: Path, *, is_public: bool = False) -> Content:
    """Reads a whole file.

    Args:
        what: What names it in messages, for example `--tls-key`.
        path: The file; a link to it is followed, as mounted secrets are links.
        is_public: Others may read it: a certificate. They may never write it.

    Raises:
        PrivateFileError: it cannot be read, is no regular file, is too large, or is open to others.
    """
    try:
        # A FIFO without a writer would hold the server up for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PrivateFileError(f"{what} {path}: expected a file that can be read, got: {reason}") from None
    try:
        status = os.fstat(descriptor)
        _check(f"{what} {path}", status, is_public)
        with open(descriptor, "rb", closefd=False) as file:
            return Content(file.read(MAX_BYTES), _mark(status))
    finally:
        os.close(descriptor)


def _check(what: str, status: os.stat_result, is_public: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PrivateFileError(f"{what}: expected a regular file")
    if status.st_size > MAX_BYTES:
        raise PrivateFileError(f"{what}: expected at most {MAX_BYTES} bytes, got {status.st_size}")
    forbidden = _FOR_OTHERS & ~stat.S_IROTH & ~stat.S_IXOTH if is_public else _FOR_OTHERS
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        expected = "that only its owner may write" if is_public else "that others may not read and its group not write"
        fitting = mode & ~forbidden
        raise PrivateFileError(f"{what}: expected a file {expected}, got mode {mode:04o}; chmod {fitting:04o} helps")


def _mark(status: os.stat_result) -> Mark:
    return Mark(status.st_mtime_ns, status.st_size, status.st_ino)
