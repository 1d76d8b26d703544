"""What a client shows: TLS by files, and a token that never goes in cleartext nor into a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fitserve_client import AsyncClient, Client, Tls
from fitserve_client.connection import Connection
from fitserve_client.credentials import Token
from fitserve_client.errors import FileError, InvalidArgumentError


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "options", [{"token": "secret"}, {"token_file": "file"}, {"metadata": [("Authorization", "Bearer secret")]}]
)
def test_a_token_without_tls_is_refused_before_anything_is_sent(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="token: expected TLS with it") as caught:
        kind("localhost:1", **options)
    assert "secret" not in str(caught.value)


def test_a_token_goes_with_each_call_and_its_file_is_read_anew(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "token", "first\n")
    connection = Connection(tls=Tls(), token_file=path, metadata=[("k", "v")])
    assert connection.call_metadata() == (("k", "v"), ("authorization", "Bearer first"))
    secret_file(tmp_path / "next", " second ").replace(path)
    assert connection.call_metadata()[1] == ("authorization", "Bearer second")
    # While it is exchanged, the token that was good goes on.
    secret_file(path, "")
    assert connection.call_metadata()[1] == ("authorization", "Bearer second")
    path.unlink()
    assert connection.call_metadata()[1] == ("authorization", "Bearer second")
    secret_file(path, "third")
    assert connection.call_metadata()[1] == ("authorization", "Bearer third")


def test_a_token_is_in_no_text(tmp_path: Path) -> None:
    for options in ({"token": "secret"}, {"token_file": secret_file(tmp_path / "token", "secret")}):
        connection = Connection(tls=Tls(), **options)  # type: ignore[arg-type]
        assert "secret" not in repr(connection)
        assert "secret" not in repr(connection._token)


@pytest.mark.parametrize("token", ["", "a b", "ä", "a\nb", "a\tb"])
def test_what_cannot_be_sent_as_a_token_is_refused(tmp_path: Path, token: str) -> None:
    path = secret_file(tmp_path / "token", token)
    with pytest.raises(InvalidArgumentError, match="one word of printable ASCII"):
        Token(file=path)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660])
def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path / "token", "secret")
    path.chmod(mode)
    with pytest.raises(FileError, match=f"got mode {mode:04o}; chmod 06[04]0 helps"):
        Token(file=path)
    with pytest.raises(FileError, match="No such file"):
        Token(file=tmp_path / "none")


def test_a_certificate_needs_its_key_and_files_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a key with the certificate"):
        Tls(certificate="c.pem")
    with pytest.raises(InvalidArgumentError, match="expected a certificate with the key"):
        Tls(key="c.key")
    with pytest.raises(FileError, match=r"ca.pem: expected to be readable, got: No such file"):
        Client("localhost:1", tls=Tls(ca=tmp_path / "ca.pem"))
