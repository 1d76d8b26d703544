"""Which settings let whom in, and which a server refuses to start with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import pki

from fitserve_service.entrance import EntranceError, check_entrance, tls_files
from fitserve_service.settings import ServerSettings

pytestmark = pytest.mark.needs_program("openssl")

TOKEN = f'[[token]]\nname = "ci"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\n'
CERTIFICATE = '[[certificate]]\nidentity = "x"\nscopes = ["infer"]\n'
ANONYMOUS = '[anonymous]\nscopes = ["infer"]\n'


def settings_in(folder: Path, *, has_tls: bool, has_ca: bool, access: str | None, host: str) -> ServerSettings:
    files, ca = pki.server_files(folder)
    changes: dict[str, Any] = {}
    if has_tls:
        changes |= {"tls_cert": files.certificate, "tls_key": files.key}
    if has_ca:
        changes["tls_client_ca"] = ca.certificate
    if access is not None:
        (folder / "access.toml").write_text(access)
        (folder / "access.toml").chmod(0o600)
        changes["access_file"] = folder / "access.toml"
    return ServerSettings(folder, host=host, **changes)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize(
    ("has_tls", "has_ca", "access", "locally", "openly"),
    [
        (False, False, None, "", "without TLS and tokens everybody"),
        (True, False, None, "", "without TLS and tokens everybody"),
        (True, True, None, "", "without TLS and tokens everybody"),
        (False, False, TOKEN, "credentials go over TLS alone", "credentials go over TLS alone"),
        (True, False, TOKEN, "", ""),
        (True, True, TOKEN + CERTIFICATE, "", ""),
        (True, True, CERTIFICATE, "", ""),
        (True, False, CERTIFICATE, "expected --tls-client-ca", "expected --tls-client-ca"),
        (False, True, None, "--tls-client-ca: expected both", "--tls-client-ca: expected both"),
        (False, False, ANONYMOUS, "", "anonymous: expected only with an address of this machine alone"),
        (True, False, TOKEN + ANONYMOUS, "", "anonymous: expected only with an address of this machine alone"),
        (True, False, "", "expected a token at least", "expected a token at least"),
        (True, False, "[quotas.default]\n", "expected a token at least", "expected a token at least"),
        (True, False, "token = 1\n", "token: expected entries", "token: expected entries"),
    ],
)
def test_another_address_than_this_machines_needs_tls_and_credentials(
    tmp_path: Path, host: str, has_tls: bool, has_ca: bool, access: str | None, locally: str, openly: str
) -> None:
    settings = settings_in(tmp_path, has_tls=has_tls, has_ca=has_ca, access=access, host=host)
    problem = openly if host in ("0.0.0.0", "::") else locally
    if not problem:
        check_entrance(settings)
    else:
        with pytest.raises(EntranceError, match=problem):
            check_entrance(settings)


@pytest.mark.parametrize("given", ["tls_cert", "tls_key", "tls_client_ca"])
def test_one_file_of_tls_alone_is_no_tls(tmp_path: Path, given: str) -> None:
    changes: dict[str, Any] = {given: tmp_path / "file.pem"}
    with pytest.raises(EntranceError, match=f"--{given.replace('_', '-')}: expected both --tls-cert and --tls-key"):
        tls_files(ServerSettings(tmp_path, **changes))


@pytest.mark.parametrize(
    ("host", "metrics_host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1"), ("localhost", "localhost")],
)
def test_the_metrics_port_is_this_machines_alone(host: str, metrics_host: str) -> None:
    assert ServerSettings(Path(), host=host).metrics_host == metrics_host
