"""Certificate and key: what holds, what does not, and what is said of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests import pki

from fitserve_service.access.private_files import PrivateFileError
from fitserve_service.access.tls_files import TlsFiles, TlsWatcher, read_tls

pytestmark = pytest.mark.needs_program("openssl")


def test_a_pair_that_holds_is_given_as_it_is(tmp_path: Path) -> None:
    files, _ = pki.server_files(tmp_path, asks_for_certificates=True)
    content = read_tls(files)
    assert content.certificate == files.certificate.read_bytes()
    assert content.key == files.key.read_bytes()
    assert files.client_ca is not None
    assert content.client_ca == files.client_ca.read_bytes()


def test_a_key_of_another_certificate_is_not_taken(tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    with pytest.raises(PrivateFileError, match=r"server.pem: expected a PEM .* in .*ca.key, got: key values mismatch"):
        read_tls(TlsFiles(files.certificate, ca.key))


def test_an_encrypted_key_is_refused_and_no_terminal_is_asked_for_its_password(tmp_path: Path) -> None:
    files, _ = pki.server_files(tmp_path)
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", files.key, "-out", locked, "-passout", "pass:x"], check=True, timeout=20
    )
    locked.chmod(0o600)
    with pytest.raises(PrivateFileError, match="unencrypted key"):
        read_tls(TlsFiles(files.certificate, locked))


@pytest.mark.parametrize("content", [b"", b"my own words", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_what_is_no_pem_is_said_and_nothing_of_it_shown(tmp_path: Path, content: bytes) -> None:
    files, _ = pki.server_files(tmp_path)
    broken = tmp_path / "broken.pem"
    broken.write_bytes(content)
    broken.chmod(0o600)
    for changed, option in (
        (TlsFiles(broken, files.key), "--tls-cert"),
        (TlsFiles(files.certificate, broken), "--tls-cert"),
        (TlsFiles(files.certificate, files.key, broken), "--tls-client-ca"),
    ):
        with pytest.raises(PrivateFileError, match=option) as caught:
            read_tls(changed)
        assert "my own words" not in str(caught.value)


def test_a_key_that_others_may_read_is_refused_and_a_certificate_is_not(tmp_path: Path) -> None:
    files, _ = pki.server_files(tmp_path)
    files.certificate.chmod(0o644)
    files.key.chmod(0o644)
    with pytest.raises(PrivateFileError, match=r"--tls-key .*got mode 0644; chmod 0640 helps"):
        read_tls(files)
    files.key.chmod(0o640)
    read_tls(files)
    files.certificate.chmod(0o666)
    with pytest.raises(PrivateFileError, match=r"--tls-cert .*that only its owner may write, got mode 0666"):
        read_tls(files)


def test_a_watcher_gives_each_content_that_holds_once(tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    watcher = TlsWatcher(files)
    assert watcher.changed() is None
    fresh = pki.issue(tmp_path, "fresh", ca)
    fresh.certificate.replace(files.certificate)
    assert watcher.changed() is None
    fresh.key.replace(files.key)
    changed = watcher.changed()
    assert changed is not None
    assert changed.key == files.key.read_bytes()
    assert watcher.changed() is None
    files.key.unlink()
    assert watcher.changed() is None
    assert watcher.content is changed


def test_a_reload_reads_what_cannot_be_told_from_outside(tmp_path: Path) -> None:
    files, ca = pki.server_files(tmp_path)
    watcher = TlsWatcher(files)
    assert watcher.changed() is None
    watcher.reload()
    content = watcher.changed()
    assert content is not None
    assert content.certificate == files.certificate.read_bytes()
    assert watcher.changed() is None
    # One that does not hold leaves what was, now and at the next look.
    files.key.write_bytes(ca.key.read_bytes())
    watcher.reload()
    assert watcher.changed() is None
