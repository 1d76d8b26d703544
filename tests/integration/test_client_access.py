"""Both clients and the command line against a server with TLS and tokens, of one process and of several."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests import builders, pki

from fitserve_client import AccessError, AsyncClient, Client, ResourceExhaustedError, Tls, UnavailableError

pytestmark = pytest.mark.needs_program("openssl")

WAIT_S = 60.0
SERVE = (sys.executable, "-c", "from fitserve_service.cli import main; main()")
CLIENT = (sys.executable, "-c", "import sys; from fitserve_client.cli import main; sys.exit(main())")


def new_token(folder: Path, name: str, *flags: str) -> Path:
    """Makes a token by the command, as its user keeps it."""
    command = [*SERVE, "token", name, "--access-file", str(folder / "access.toml"), *flags]
    made = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_S)
    path = folder / f"{name}.token"
    path.touch(0o600)
    path.write_text(made.stdout)
    return path


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[str, Path, list[str]]]:
    """Serves `open` and `secret`; gives where, the authority, and the records of the log once it has ended."""
    for name in ("open", "secret"):
        builders.publish_version(folder / "repository", name, builders.scaled())
    files, ca = pki.server_files(folder)
    command = [
        *SERVE, "--repository", folder / "repository", "--port", "0", "--metrics-port", "off", "--device", "cpu",
        "--canary", "off", "--tls-cert", files.certificate, "--tls-key", files.key,
        "--access-file", folder / "access.toml", "--audit-log", folder / "audit.log", "--log-level", "debug", *flags,
    ]  # fmt: skip
    log: list[str] = []
    with (folder / "server.log").open("w") as errors:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"ready on \S+:(\d+)", process.stdout.readline())
            assert found, (folder / "server.log").read_text()
            yield f"localhost:{found[1]}", ca.certificate, log
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    log += (folder / "server.log").read_text().splitlines()


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_tokens_hold_in_every_worker_and_are_in_no_log(tmp_path: Path, workers: str) -> None:
    ci = new_token(tmp_path, "ci", "--scopes", "infer", "--models", "open")
    ops = new_token(tmp_path, "ops", "--scopes", "infer,control", "--days", "1")
    x = np.ones((1, 2), np.float32)
    with served(tmp_path, "--host", "0.0.0.0", "--workers", workers) as (target, ca, log):
        tls = Tls(ca=ca)
        # Each connection goes to whichever worker the kernel deals it to.
        for _ in range(6):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with Client(target, tls=tls, token_file=ci, options=options) as client:
                assert client.predict("open", x).array.tolist() == [[2, 2]]
                assert [model.name for model in client.models()] == ["open"]
                for name in ("secret", "nothing"):
                    with pytest.raises(AccessError, match="expected a model that it is good for") as caught:
                        client.predict(name, x)
                    assert caught.value.reason == "NOT_PERMITTED"
                with pytest.raises(AccessError, match="expected the scope control, it has infer"):
                    client.unload("open")
            with Client(target, tls=tls, options=options) as client, pytest.raises(AccessError) as caught:
                client.models()
            assert caught.value.reason == "NOT_AUTHENTICATED"
        with Client(target, tls=tls, token=ops.read_text().strip()) as client:
            client.unload("secret")
        with Client(target) as client, pytest.raises(UnavailableError):
            client.models(timeout_s=1)
    records = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [(r["event"], r["caller"]) for r in records] == [
        *[("refused", "token:ci")] * 6, ("asked", "token:ops"), ("done", "token:ops"),
    ]  # fmt: skip
    everything = "\n".join(log) + (tmp_path / "audit.log").read_text()
    assert "listening" in everything
    for path in (ci, ops):
        assert path.read_text().strip() not in everything


def test_the_asynchronous_client_speaks_tls_and_sends_its_token(tmp_path: Path) -> None:
    ci = new_token(tmp_path, "ci", "--scopes", "infer")
    with (tmp_path / "access.toml").open("a") as file:
        file.write("\n[quotas.ci]\nrequests_per_s = 0.001\nburst = 3\n")

    async def run(target: str, ca: Path) -> list[list[float]]:
        async with AsyncClient(target, tls=Tls(ca=ca), token_file=ci) as client:
            answers = [(await client.predict("open", np.ones((1, 2), np.float32))).array[0].tolist() for _ in range(3)]
            told = r"quota of token:ci: expected at most 0\.001 requests"
            with pytest.raises(ResourceExhaustedError, match=told) as caught:
                await client.predict("open", np.ones((1, 2), np.float32))
            assert caught.value.retry_after_s is not None
            assert 500 < caught.value.retry_after_s < 1001
        return answers

    with served(tmp_path) as (target, ca, _):
        assert asyncio.run(run(target, ca)) == [[2, 2]] * 3


def test_the_command_line_takes_files_by_flag_or_environment_and_the_token_never_by_flag(tmp_path: Path) -> None:
    ci = new_token(tmp_path, "ci", "--scopes", "infer")
    with served(tmp_path) as (target, ca, _):

        def run(*flags: str, **environment: str) -> tuple[int, str]:
            command = [*CLIENT, "models", "--server", target, "--timeout", "5", *flags]
            made = subprocess.run(
                command, capture_output=True, text=True, timeout=WAIT_S, env={**os.environ, **environment}
            )
            return made.returncode, made.stdout + made.stderr

        by_flag = run("--tls-ca", str(ca), "--token-file", str(ci))
        assert by_flag[0] == 0
        assert "secret" in by_flag[1]
        assert run(FITSERVE_TLS_CA=str(ca), FITSERVE_TOKEN_FILE=str(ci)) == by_flag
        assert run(FITSERVE_TLS_CA=str(ca), FITSERVE_TOKEN=ci.read_text().strip()) == by_flag
        assert run("--tls-ca", str(ca)) == (
            1, "fitserve-client: credential: expected a token that is valid here (authorization: Bearer …), got none\n",
        )  # fmt: skip
        code, text = run("--token-file", str(ci))
        assert (code, "token: expected TLS with it" in text) == (1, True)
        code, text = run("--tls", "--token-file", str(ci), "--timeout", "1")
        assert (code, "no server answers" in text, "--tls-ca FILE" in text) == (2, True, True)
        ci.chmod(0o644)
        code, text = run("--tls-ca", str(ca), "--token-file", str(ci))
        assert (code, "got mode 0644; chmod 0640 helps" in text) == (2, True)


def test_who_may_not_load_versions_is_told_of_the_one_to_compare(tmp_path: Path) -> None:
    token = new_token(tmp_path, "reader", "--scopes", "infer,evaluate")
    builders.publish_version(tmp_path / "repository", "open", builders.scaled())
    with served(tmp_path) as (target, ca, _):
        access = ["--server", target, "--tls-ca", ca, "--token-file", token, "--timeout", "2"]
        command = [*CLIENT, "compare", "open", "--versions", "1,2", "--held-out", *map(str, access)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert "version 1 is UNLOADED, not READY; keep it loaded with a label: fitserve-client label open" in done.stderr
