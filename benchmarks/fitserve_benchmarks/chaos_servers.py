"""Servers that a chaos run starts, kills, stops and starts again on the same port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from fitserve_benchmarks.chaos_load import MODEL
from fitserve_benchmarks.processes import child_process, children
from fitserve_client import Client

_SERVE: Final = "from fitserve_service.cli import main; main()"
_WAIT_S: Final = 120.0
_PAUSE_S: Final = 0.2


class ServerError(RuntimeError):
    """A server that did not start, or did not end as it must."""


class ChaosServer:
    """One server on one port through all its lives. Used by one thread; close it.

    Args:
        repository: What it serves.
        log: Where its log goes.
        worker_count: Its workers.
        before: Python that its process runs before it serves, for a control that must fail.
        environment: Variables beside those of this process.
        options: Further options of `fitserve-serve`.
    """

    def __init__(
        self,
        repository: Path,
        log: Path,
        worker_count: int,
        *,
        before: str = "",
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._repository = repository
        self._log = log
        self._worker_count = worker_count
        self._environment = environment
        self._options = options
        self._port = 0
        self._code = before + _SERVE
        self._life = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port}"

    @property
    def process_id(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it, and waits until it takes calls. ServerError: it does not come up."""
        until_s = time.monotonic() + _WAIT_S
        while not (line := self._start_once()):
            self._life.close()
            if time.monotonic() > until_s:
                raise ServerError(f"server: expected it to start, got:\n{self._log.read_text()[-2000:]}")
            # The workers of a server that was killed may hold its port for a moment longer.
            time.sleep(_PAUSE_S)
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        self._port = int(found[1])

    def wait_until_ready(self, version: int | None = None) -> None:
        """Waits until a version is READY in all its workers; None: the one that answers by default."""
        with Client(self.address) as client:
            client.wait_until_ready(MODEL, version=version, timeout_s=_WAIT_S)

    def workers(self) -> list[int]:
        """Lists the process ids of its workers."""
        return children(self.process_id)

    def stop(self) -> None:
        """Ends it as a rolling restart does. ServerError: it does not end with exit code 0."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(_WAIT_S)
        self._life.close()
        if code:
            raise ServerError(f"server: expected to end with exit code 0, got {code}:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kills it without a word; its workers end by themselves."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(_WAIT_S)
        self._life.close()

    def close(self) -> None:
        """Ends whatever runs."""
        self._life.close()

    def _start_once(self) -> str:
        flags = ["--repository", str(self._repository), "--port", str(self._port), "--metrics-port", "0"]
        flags += ["--device", "cpu", "--workers", str(self._worker_count), "--poll-interval-s", "0.1"]
        flags += self._options
        log = self._life.enter_context(self._log.open("ab"))
        self._process = self._life.enter_context(
            child_process(
                [sys.executable, "-c", self._code, *flags],
                environment=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        )
        assert self._process.stdout is not None
        self._life.callback(self._process.stdout.close)
        return self._process.stdout.readline().decode()
