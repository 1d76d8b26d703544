"""Reading and writing files so that nothing outside a folder is read and nothing is ever seen half written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from fitserve_contract.printable import printable

_CHUNK_BYTES = 1 << 20


class UnsafeFileError(ValueError):
    """A file that must not be read: outside its folder, behind a link, or no regular file."""


def relative_parts(relative: str) -> tuple[str, ...]:
    """Splits a path below a folder, with `/`, into its components.

    Raises:
        UnsafeFileError: it is absolute, empty, or has `..` in it.
    """
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\0" in relative:
        raise UnsafeFileError(f"file '{printable(relative[:128])}': expected a relative path without '..'")
    return parts


def open_folder(path: str | Path) -> int:
    """Opens a folder whose last component is no link, as the start of `open_steps`; OSError: it is not there."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextlib.contextmanager
def open_steps(folder: int, parts: Sequence[str], flags: int) -> Iterator[int]:
    """Opens what lies below a folder, component by component, following no link of any kind.

    Every component is opened from the one before it with O_NOFOLLOW, so that no swap of a name in between can lead
    outside.

    Args:
        folder: The folder's descriptor.
        parts: Names without `/`, none of them `..`; none: the folder itself.
        flags: How the last is opened.

    Yields:
        File descriptor, closed on exit.

    Raises:
        OSError: a component is not there, or is a link (ELOOP, ENOTDIR).
    """
    with contextlib.ExitStack() as stack:
        for part in parts[:-1]:
            folder = _open_at(folder, part, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, folder)
        descriptor = _open_at(folder, parts[-1] if parts else ".", flags)
        stack.callback(os.close, descriptor)
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            # Only O_PATH opens a link itself.
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), parts[-1])
        yield descriptor


def check_regular(descriptor: int, name: str) -> None:
    """Checks that an open file is a regular one that lies nowhere else: another name of it may lie outside.

    Raises:
        UnsafeFileError: it is of another type, or has a second hard link.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(
            f"file '{printable(name[:128])}': expected a regular file, got {_type_text(status.st_mode)}"
        )
    # None at all: it was replaced since it was opened, and what is read is whole and of this folder.
    if status.st_nlink > 1:
        cure = "copy the file, or use a symbolic link within the repository"
        raise UnsafeFileError(f"file '{printable(name[:128])}': expected 1 hard link, got {status.st_nlink}; {cure}")


def read_descriptor(descriptor: int, name: str, max_bytes: int) -> bytes:
    """Reads a whole open file.

    Raises:
        UnsafeFileError: it is larger than `max_bytes`, or changed while it was read.
        OSError: it cannot be read.
    """
    with os.fdopen(os.dup(descriptor), "rb") as file:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > max_bytes:
            raise UnsafeFileError(f"file '{printable(name)}': expected at most {max_bytes} bytes, got {size_bytes}")
        content = file.read(size_bytes + 1)
    if len(content) != size_bytes:
        raise UnsafeFileError(f"file '{printable(name)}': expected {size_bytes} bytes, got {len(content)}: it changed")
    return content


def sha256_of(descriptor: int) -> str:
    """Computes the SHA-256 of an open file from where it stands, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def open_beneath(folder: Path, relative: str) -> Iterator[int]:
    """Opens a regular file beneath a folder for reading, following no link of any kind; see `open_steps`.

    Args:
        folder: Folder that the file may not leave. A link to it is followed.
        relative: Path below it, with `/`.

    Yields:
        File descriptor, closed on exit.

    Raises:
        UnsafeFileError: absolute path, `..`, a symbolic link, a hard link, or no regular file.
        OSError: it cannot be opened.
    """
    parts = relative_parts(relative)
    with contextlib.ExitStack() as stack:
        beginning = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, beginning)
        try:
            descriptor = stack.enter_context(open_steps(beginning, parts, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            if (link := _first_link(beginning, parts)) is not None:
                text = f"file '{printable(relative[:128])}': expected no symbolic link, got one at '{link}'"
                raise UnsafeFileError(text) from None
            raise error
        check_regular(descriptor, relative)
        yield descriptor


def read_beneath(folder: Path, relative: str, *, max_bytes: int) -> bytes:
    """Reads a whole file beneath a folder.

    Raises:
        UnsafeFileError: as `open_beneath`; or the file is larger than `max_bytes`, or changed while it was read.
        OSError: it cannot be opened or read.
    """
    with open_beneath(folder, relative) as descriptor:
        return read_descriptor(descriptor, relative, max_bytes)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and flushes it to the disk; the name itself is flushed by `sync_folder` of its folder."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new, also after a crash at any moment.

    Raises:
        UnsafeFileError: the file or its folder is a link: nothing is written through one, and none is replaced.
        OSError: disk full, no permission; the old content stays.
    """
    with open_to_write(path.parent) as folder:
        if is_link(folder, path.name):
            raise UnsafeFileError(_link_text(path))
        aside = f".{path.name}.{os.getpid()}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(aside, flags, 0o666, dir_fd=folder), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=folder)
        os.fsync(folder)


@contextlib.contextmanager
def open_to_write(folder: Path) -> Iterator[int]:
    """Opens a folder for changes in it; links on the way to it are followed.

    Yields:
        File descriptor, closed on exit.

    Raises:
        UnsafeFileError: the folder itself is a link: nothing is written through one.
        OSError: it is not there, or cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if folder.is_symlink():
            raise UnsafeFileError(_link_text(folder)) from None
        raise error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_link(folder: int, relative: str) -> bool:
    """Tells whether a symbolic link lies below an open folder."""
    try:
        return stat.S_ISLNK(os.stat(relative, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _open_at(folder: int, name: str, flags: int) -> int:
    return os.open(name, os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)


def _first_link(folder: int, parts: Sequence[str]) -> str | None:
    """Returns the component that is a link; None where none is."""
    paths = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next((part for part, path in zip(parts, paths, strict=True) if is_link(folder, path)), None)


def _link_text(path: Path) -> str:
    target = printable(os.readlink(path))[:256]
    text = f"'{path.parent.name}/{path.name}': expected no symbolic link, got one to '{target}'"
    return f"{text}; nothing is written through links: change what it leads to"


def _type_text(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a device")
