"""Authorities and certificates for tests, made by openssl as the README tells people to."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fitserve_service.access.tls_files import TlsFiles

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: Path
    key: Path


def authority(folder: Path, name: str = "ca") -> Pair:
    """Makes an authority."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl("req", "-x509", *_NEW_KEY, "-days", "10", "-subj", f"/CN={name}", *_out(pair))
    return pair


def issue(folder: Path, name: str, by: Pair, *, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 5) -> Pair:
    """Has an authority sign a certificate; with days below 0 it has expired. Names as openssl's subjectAltName."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n" if names else "")
    _openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request)
    signing = ("-CA", by.certificate, "-CAkey", by.key, "-CAcreateserial", "-days", str(days), "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *signing, "-out", pair.certificate)
    return pair


def server_files(folder: Path, *, asks_for_certificates: bool = False) -> tuple[TlsFiles, Pair]:
    """Makes what a server needs, and gives it with the authority that has signed it."""
    ca = authority(folder)
    server = issue(folder, "server", ca)
    return TlsFiles(server.certificate, server.key, ca.certificate if asks_for_certificates else None), ca


def client_credentials(ca: Pair, own: Pair | None = None) -> grpc.ChannelCredentials:
    """What a client trusts and shows."""
    shown: tuple[Any, ...] = (own.key.read_bytes(), own.certificate.read_bytes()) if own else (None, None)
    return grpc.ssl_channel_credentials(ca.certificate.read_bytes(), *shown)


def _out(pair: Pair) -> tuple[Any, ...]:
    return "-keyout", pair.key, "-out", pair.certificate


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
