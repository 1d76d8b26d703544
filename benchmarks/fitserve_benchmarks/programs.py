"""The installed commands as steps: shown, run, and a server of them that ends with its context."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fitserve_benchmarks.processes import child_process, run_child
from fitserve_client import Client
from fitserve_client.errors import FitserveError

_READY_S: Final = 60.0
_ASK_S: Final = 1.0
_TAIL_LINES: Final = 40


class StepFailedError(RuntimeError):
    """A step did not do what it was to do; the message says which and why."""


@dataclass(frozen=True, slots=True)
class RunningService:
    """A server that is READY.

    Args:
        address: `host:port` of gRPC.
        metrics_port: Port of the metrics.
        log_path: Where its output goes.
        pid: Process id.
    """

    address: str
    metrics_port: int
    log_path: Path
    pid: int


def run_program(program: str, *arguments: str, is_output_wanted: bool = False) -> str:
    """Runs an installed command to its end; what it prints goes to the terminal, or is returned where it is wanted.

    Args:
        program: Command of this installation, for example `fitserve-train`.
        arguments: Its arguments.
        is_output_wanted: Return what it prints on stdout instead of showing it.

    Raises:
        StepFailedError: its exit code is not 0.
    """
    print(f"\n$ {shlex.join([program, *arguments])}", flush=True)
    stdout = subprocess.PIPE if is_output_wanted else None
    exit_code, output = run_child([program_path(program), *arguments], stdout=stdout)
    if exit_code != 0:
        sys.stdout.write(output.decode(errors="replace"))
        raise StepFailedError(f"{program}: expected exit code 0, got {exit_code}; what it said is above")
    return output.decode()


@contextmanager
def running_service(
    repository: Path, model: str, version: int, *, log_path: Path, options: Sequence[str] = ()
) -> Iterator[RunningService]:
    """Serves a repository on free ports of this machine; the server is over when the context is.

    Args:
        repository: Model repository.
        model: Model that must become READY.
        version: Its version that must.
        log_path: File for its output; its folder is made.
        options: Further options of `fitserve-serve`.

    Yields:
        The service, with the version READY.

    Raises:
        StepFailedError: it ended, or the version was not READY within a minute; its last lines of output are shown.
    """
    port, metrics_port = free_ports(2)
    places = ["--repository", str(repository), "--host", "127.0.0.1"]
    arguments = [*places, "--port", str(port), "--metrics-port", str(metrics_port), *options]
    print(f"\n$ {shlex.join(['fitserve-serve', *arguments])}", flush=True)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [program_path("fitserve-serve"), *arguments]
    with log_path.open("wb") as log, child_process(command, stdout=log, stderr=subprocess.STDOUT) as process:
        service = RunningService(f"127.0.0.1:{port}", metrics_port, log_path, process.pid)
        _await_ready(service, process, model, version)
        yield service


def program_path(program: str) -> str:
    """Gives the path of a command of this installation."""
    return str(Path(sysconfig.get_path("scripts"), program))


def free_ports(count: int) -> list[int]:
    """Finds TCP ports that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def _await_ready(service: RunningService, process: subprocess.Popen[bytes], model: str, version: int) -> None:
    end_s = time.monotonic() + _READY_S
    reason = f"model '{model}' version {version} was not READY within {_READY_S:.0f} s"
    with Client(service.address) as client:
        while time.monotonic() < end_s:
            try:
                return client.wait_until_ready(model, version=version, timeout_s=_ASK_S)
            except FitserveError as error:
                reason = str(error)
            if process.poll() is not None:
                reason = f"expected it to go on serving, it ended with exit code {process.returncode}"
                break
    print("\n".join(_tail(service.log_path)))
    raise StepFailedError(f"fitserve-serve: {reason}; its last lines are above")


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
