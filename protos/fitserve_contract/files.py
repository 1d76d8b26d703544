"""Reading and writing files so that nothing outside a folder is read and nothing is ever seen half written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CHUNK_BYTES = 1 << 20


class UnsafeFileError(ValueError):
    """A file that must not be read: outside its folder, behind a link, or no regular file."""


@contextlib.contextmanager
def open_beneath(folder: Path, relative: str) -> Iterator[int]:
    """Opens a regular file beneath a folder for reading, following no link of any kind.

    Every component is opened from the one before it with O_NOFOLLOW, so that no swap of a name in between can lead
    outside; a file with a second hard link may lie outside as well, and is refused.

    Args:
        folder: Folder that the file may not leave. A link to it is followed.
        relative: Path below it, with `/`.

    Yields:
        File descriptor, closed on exit.

    Raises:
        UnsafeFileError: absolute path, `..`, a symbolic link, a hard link, or no regular file.
        OSError: it cannot be opened.
    """
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\0" in relative:
        raise UnsafeFileError(f"file '{relative[:128]}': expected a relative path without '..'")
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        for part in parts[:-1]:
            descriptor = _open_at(descriptor, part, os.O_DIRECTORY, relative)
            stack.callback(os.close, descriptor)
        descriptor = _open_at(descriptor, parts[-1], os.O_NONBLOCK, relative)
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError(f"file '{relative[:128]}': expected a regular file")
        # None at all: it was replaced since it was opened, and what is read is whole and of this folder.
        if status.st_nlink > 1:
            raise UnsafeFileError(f"file '{relative[:128]}': expected 1 hard link, got {status.st_nlink}")
        yield descriptor


def read_beneath(folder: Path, relative: str, *, max_bytes: int) -> bytes:
    """Reads a whole file beneath a folder.

    Raises:
        UnsafeFileError: as `open_beneath`; or the file is larger than `max_bytes`, or changed while it was read.
        OSError: it cannot be opened or read.
    """
    with open_beneath(folder, relative) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > max_bytes:
            raise UnsafeFileError(f"file '{relative}': expected at most {max_bytes} bytes, got {size_bytes}")
        content = file.read(size_bytes + 1)
    if len(content) != size_bytes:
        raise UnsafeFileError(f"file '{relative}': expected {size_bytes} bytes, got {len(content)}: it changed")
    return content


def sha256_beneath(folder: Path, relative: str) -> str:
    """Computes the SHA-256 of a file beneath a folder, in lower-case hexadecimal; raises as `open_beneath`."""
    digest = hashlib.sha256()
    with open_beneath(folder, relative) as descriptor:
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and flushes it to the disk; the name itself is flushed by `sync_folder` of its folder."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new, also after a crash at any moment."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(aside, content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_at(folder: int, name: str, flags: int, relative: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if _is_link(folder, name):
            raise UnsafeFileError(f"file '{relative[:128]}': expected no symbolic link, got one at '{name}'") from None
        raise error


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
