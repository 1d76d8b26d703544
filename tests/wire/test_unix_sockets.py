"""Serving at a path instead of a port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import builders
from tests.wire.commands import SERVE, WAIT_S, codes, connected, in_flight, slow_repository, started, wait_until

from fitserve_client import Client

CLIENT = (sys.executable, "-c", "import sys; from fitserve_client.cli import main; sys.exit(main())")


@pytest.mark.parametrize("transport", ["fast", pytest.param("stock", marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_path_is_served_to_its_owner_and_kept_to_one_server(tmp_path: Path, workers: str, transport: str) -> None:
    root, path = tmp_path / "models", tmp_path / "s"
    builders.bare_version(root, "twice", 1, builders.scaled())
    flags = ("--workers", workers, "--transport", transport, "--metrics-port", "off")
    address = ("--host", f"unix:{path}")
    with started(slow_repository(root), *flags, address=address) as command:
        assert f"ready on unix:{path}" in command.line
        assert path.stat().st_mode & 0o777 == 0o600
        with Client(f"unix:{path}") as client:
            assert client.predict("twice", np.ones((1, 2), np.float32)).array.tolist() == [[2.0, 2.0]]
        listed = subprocess.run([*CLIENT, "models", "--server", f"unix:{path}"], capture_output=True, text=True)
        assert (listed.returncode, "twice" in listed.stdout) == (0, True)
        second = [*SERVE, "--repository", str(root), *address, *flags]
        refused = subprocess.run(second, capture_output=True, text=True, timeout=WAIT_S)
        assert refused.returncode == 2
        assert f"unix:{path} is in use: stop the server that has it" in refused.stderr
        with connected(f"unix:{path}") as channel:
            running = in_flight(channel)
            command.process.send_signal(signal.SIGTERM)
            assert codes(running) == {"OK"}
        assert command.process.wait(WAIT_S) == 0
    assert sorted(os.listdir(tmp_path)) == ["models", "models.log"]


@pytest.mark.slow
def test_what_a_killed_worker_or_server_leaves_is_taken_over(tmp_path: Path) -> None:
    root, path = tmp_path / "models", tmp_path / "s"
    address, flags = ("--host", f"unix:{path}"), ("--metrics-port", "off", "--log-format", "text")
    with started(slow_repository(root), *flags, address=address) as command:
        (worker,) = command.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: command.log().count("takes calls") == 2)
        with connected(f"unix:{path}") as channel:
            assert codes(in_flight(channel)) == {"OK"}
        command.process.kill()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert path.is_socket()
    with started(root, *flags, address=address), connected(f"unix:{path}") as channel:
        assert codes(in_flight(channel)) == {"OK"}


def test_several_workers_are_refused_in_a_sentence(tmp_path: Path) -> None:
    command = [*SERVE, "--repository", str(tmp_path), "--host", f"unix:{tmp_path}/s", "--workers", "2"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert refused.returncode == 2
    assert "--workers: expected 0 or 1 with --host unix:" in refused.stderr
