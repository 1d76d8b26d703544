"""Listening at a path instead of a port: `unix:PATH`, for callers on this machine who may open that file.

grpcio removes whatever socket it finds at a path, a live server's too, and creates its own with the permissions of the
process. So a server holds a lock beside the path while it lives, and has the file created for its own user alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fitserve_service.listening import UNIX, ListenError, is_unix

MAX_PATH_BYTES: Final = 107
"""Source: unix(7): 108 bytes with the zero at the end."""

_LOCK_SUFFIX: Final = ".lock"
_CONNECT_S: Final = 1.0


def path_of(host: str) -> str:
    """Gives the path in `unix:PATH`; `unix:///PATH` means the same as `unix:/PATH`."""
    path = host.removeprefix(UNIX)
    return path[2:] if path.startswith("///") else path


def target_of(host: str) -> str:
    """Writes `unix:PATH` as gRPC reads it: it takes percent signs for escapes."""
    return UNIX + path_of(host).replace("%", "%25")


@contextmanager
def created_privately(host: str) -> Iterator[None]:
    """Has the socket file that the block creates be its owner's alone (mode 0600); does nothing for a port."""
    if not is_unix(host):
        yield
        return
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


class SocketClaim:
    """A path that no other server takes until this one is closed or its process ends, however it ends."""

    def __init__(self, host: str) -> None:
        """Claims the path of `unix:PATH`, and removes the socket that a dead server has left there.

        Raises:
            ListenError: a live server has it, it is too long, no socket, or in a folder that cannot be written to.
        """
        self._path = path_of(host)
        if self._path.startswith("//"):
            text = "expected unix:PATH or unix:///PATH, got two slashes, after which gRPC expects a host"
            raise ListenError(f"{host[:200]}: {text}; write unix:{self._path.lstrip('/')[:200]} or unix:///…")
        length = len(os.fsencode(self._path))
        if not 1 <= length <= MAX_PATH_BYTES:
            text = f"expected a path of 1 to {MAX_PATH_BYTES} bytes, got {length}; choose a shorter folder"
            raise ListenError(f"{host[:200]}: {text}")
        try:
            self._lock = self._locked()
            try:
                self._remove_stale()
            except BaseException:
                self._unlock()
                raise
        except OSError as error:
            cure = "choose a path in a folder that exists and that this user may write to"
            raise ListenError(f"{host}: expected a path for a socket, got {error.strerror}; {cure}") from None

    def close(self) -> None:
        """Removes the socket and gives the path up; once only."""
        with suppress(OSError, ListenError):
            self._remove_stale()
        self._unlock()

    def _locked(self) -> int:
        """Takes the lock; the file is removed with it, so it counts only where it is still the one at its path."""
        path = self._path + _LOCK_SUFFIX
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(descriptor)
                if found.st_size or not stat.S_ISREG(found.st_mode):
                    raise self._not_ours(path)
                if os.path.samestat(found, os.stat(path)):
                    return descriptor
            except ListenError:
                os.close(descriptor)
                raise
            except BlockingIOError:
                os.close(descriptor)
                raise self._in_use() from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _unlock(self) -> None:
        with suppress(OSError):
            os.unlink(self._path + _LOCK_SUFFIX)
        os.close(self._lock)

    def _remove_stale(self) -> None:
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            text = "expected no file there, or the socket of a server that has ended, found another file"
            raise ListenError(f"{UNIX}{self._path}: {text}; choose another path or remove it")
        if not self._is_dead():
            raise self._in_use()
        os.unlink(self._path)

    def _is_dead(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(_CONNECT_S)
            try:
                caller.connect(self._path)
            except OSError as error:
                return error.errno == errno.ECONNREFUSED
        return False

    def _not_ours(self, path: str) -> ListenError:
        text = f"expected no file {path}, or the empty one of a server that has ended, found another"
        return ListenError(f"{UNIX}{self._path}: {text}; choose another path or remove it")

    def _in_use(self) -> ListenError:
        return ListenError(f"{UNIX}{self._path} is in use: stop the server that has it, or choose another path")
