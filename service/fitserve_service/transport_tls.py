"""TLS in grpcio's words: credentials that follow their files, and the names in a caller's certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import grpc

from fitserve_service.access.tls_files import TlsContent, TlsFiles, TlsWatcher

_NAMES: Final = ("x509_subject_alternative_name", "x509_common_name")
"""Where grpcio puts a certificate's names, by rank: one with alternative names is known by these alone.

Source: RFC 6125, 6.4.4.
"""


def server_credentials(source: TlsFiles | TlsWatcher) -> grpc.ServerCredentials:
    """Makes credentials whose certificate is looked at before each connection; those that are open keep theirs.

    Args:
        source: Certificate and key, or who watches them already.

    Raises:
        PrivateFileError: the files cannot be used.
    """
    watcher = source if isinstance(source, TlsWatcher) else TlsWatcher(source)

    def fetch() -> Any:  # None, for "as before", is not in the stubs
        changed = watcher.changed()
        return None if changed is None else _configuration(changed)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(watcher.content), fetch, require_client_authentication=watcher.content.client_ca is not None
    )


def identities_of(auth_context: Mapping[str, Iterable[bytes]] | Mapping[bytes, Iterable[bytes]]) -> tuple[str, ...]:
    """Gives the names in the certificate that a caller has shown; none without one."""
    found = {_text(key): values for key, values in auth_context.items()}
    for name in _NAMES:
        if identities := tuple(value.decode(errors="replace") for value in found.get(name, ())):
            return identities
    return ()


def _configuration(content: TlsContent) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(content.key, content.certificate)], content.client_ca)


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key
