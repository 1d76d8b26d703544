"""What a client shows and asks for: TLS files, and a token that goes over TLS alone."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from fitserve_client.errors import FileError, InvalidArgumentError

AUTHORIZATION: Final = "authorization"

_MAX_TOKEN_BYTES: Final = 4096
_FOR_OTHERS: Final = stat.S_IWGRP | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Tls:
    """How to know the server, and how to be known by it.

    Args:
        ca: PEM file of the authorities whose servers are trusted; None: those of the system.
        certificate: PEM file of the client's own certificate, where the server asks for one.
        key: PEM file of its key.

    Raises:
        InvalidArgumentError: there is one of certificate and key without the other.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise InvalidArgumentError(f"tls: expected a {missing} with the {given}, got the {given} alone")

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            FileError: one cannot be read.
        """
        files = [
            None if path is None else _read("TLS file", Path(path)) for path in (self.ca, self.key, self.certificate)
        ]
        return grpc.ssl_channel_credentials(*files)


class Token:
    """A token from a file, read anew when the file changes; or one that is given as it is.

    Its text is in no repr. Thread-safe: a race reads the file twice.
    """

    def __init__(self, text: str = "", *, file: str | Path | None = None) -> None:
        """Takes a token, or reads it.

        Args:
            text: The token; empty: from the file.
            file: A file that holds it alone, which others may not read.

        Raises:
            FileError: the file cannot be used.
            InvalidArgumentError: the token is not one that can be sent.
        """
        self._file = None if text or file is None else Path(file)
        self._mark: object = None
        self._header = ""
        if self._file is not None:
            self._mark = _mark(self._file)
            text = _read_token(self._file)
        self._header = _header(text)

    def metadata(self) -> tuple[tuple[str, str]]:
        """Gives what goes with a call."""
        if self._file is not None and (mark := _mark(self._file)) != self._mark:
            self._mark = mark
            try:
                self._header = _header(_read_token(self._file))
            except (FileError, InvalidArgumentError):
                # Being exchanged, or gone: the token that was good goes on until the server says otherwise.
                self._mark = None
        return ((AUTHORIZATION, self._header),)


def _header(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgumentError("token: expected one word of printable ASCII, got something else")
    return f"Bearer {token}"


def _read_token(path: Path) -> str:
    content = _read("token file", path, is_secret=True)
    return content.decode(errors="replace").strip()


def _read(what: str, path: Path, *, is_secret: bool = False) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileError(f"{what} {path}: expected to be readable, got: {reason}") from None
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if is_secret and mode & _FOR_OTHERS:
            fitting = f"chmod {mode & ~_FOR_OTHERS:04o} helps"
            raise FileError(f"{what} {path}: expected a file that others may not read, got mode {mode:04o}; {fitting}")
        return file.read(_MAX_TOKEN_BYTES if is_secret else -1)


def _mark(path: Path) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
