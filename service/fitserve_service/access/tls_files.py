"""The server's certificate and key: read whole, held against each other before they are used, and watched."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fitserve_service.access.private_files import Content, Mark, PrivateFileError, mark_of, read_private

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificate and key are.

    Args:
        certificate: PEM, the server's certificate first, then what leads to its authority.
        key: PEM, its private key, not encrypted.
        client_ca: PEM, the authorities whose certificates callers must show; None: callers show none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsContent:
    """What the files hold; a certificate and the key that fits it."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class TlsWatcher:
    """Gives the files' content whenever it has changed to one that holds. Thread-safe.

    A content that does not hold is logged once; until it changes again, the last good one goes on.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files.

        Raises:
            PrivateFileError: they cannot be used.
        """
        self._files = files
        self._lock = threading.Lock()
        self._is_reloaded = False
        self.content, self._marks = _read(files)

    def changed(self) -> TlsContent | None:
        """Looks at the files; None where they are what they were, or do not hold."""
        with self._lock:
            if _marks(self._files) != self._marks:
                self._read_anew()
            is_reloaded, self._is_reloaded = self._is_reloaded, False
            return self.content if is_reloaded else None

    def reload(self) -> None:
        """Reads the files now, whether they have changed or not; the next `changed` returns what they hold."""
        with self._lock:
            self._read_anew()

    def _read_anew(self) -> None:
        # Whatever comes of it, this look is over: what is broken is told once, not at each connection.
        self._marks = _marks(self._files)
        try:
            self.content, self._marks = _read(self._files)
        except PrivateFileError as error:
            _log.error("TLS: the files cannot be used; the ones before go on: %s", error)
            return
        self._is_reloaded = True
        _log.info("TLS: certificate and key are read anew")


def read_tls(files: TlsFiles) -> TlsContent:
    """Reads certificate, key and authorities, and holds them against each other.

    Raises:
        PrivateFileError: a file cannot be used, is not PEM, or the key is not the certificate's.
    """
    return _read(files)[0]


def _read(files: TlsFiles) -> tuple[TlsContent, list[Mark | None]]:
    found = [
        read_private("--tls-cert", files.certificate, is_public=True),
        read_private("--tls-key", files.key),
    ]
    if files.client_ca is not None:
        found.append(read_private("--tls-client-ca", files.client_ca, is_public=True))
    _check_pair(files, *found[:2])
    if files.client_ca is not None:
        _check_authorities(files.client_ca, found[2])
    client_ca = found[2].data if files.client_ca is not None else None
    return TlsContent(found[0].data, found[1].data, client_ca), [content.mark for content in found]


def _marks(files: TlsFiles) -> list[Mark | None]:
    paths = (files.certificate, files.key, files.client_ca)
    return [mark_of(path) for path in paths if path is not None]


def _check_pair(files: TlsFiles, certificate: Content, key: Content) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        with _as_file(certificate.data) as certificate_file, _as_file(key.data) as key_file:
            # An empty password: OpenSSL would else ask the terminal for that of an encrypted key.
            context.load_cert_chain(certificate_file, key_file, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no PEM that can be read"
        text = f"--tls-cert {files.certificate}: expected a PEM certificate with its unencrypted key in {files.key}"
        raise PrivateFileError(f"{text}, got: {str(reason).replace('_', ' ').lower()}") from None


def _check_authorities(path: Path, content: Content) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.data.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise PrivateFileError(f"--tls-client-ca {path}: expected PEM certificates of authorities") from None


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Gives a name under which OpenSSL finds these very bytes: what was checked is what is used, and is on no disk."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
