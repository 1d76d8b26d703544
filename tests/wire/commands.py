"""fitserve-serve as a process, for tests of its signals: what it says, which processes it is, and calls to it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import numpy as np
from tests import builders

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_oip import health_pb2

WAIT_S = 60.0
"""Longer than anything here takes; what runs into it has failed."""

SERVE = (sys.executable, "-c", "from fitserve_service.cli import main; main()")
PREDICT = "/fitserve.inference.v1.InferenceService/Predict"
SERVER_READY = "/inference.GRPCInferenceService/ServerReady"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = 1, 2


class Command:
    """A started command. Its log is what it writes to stderr."""

    def __init__(self, process: subprocess.Popen[str], log: Path, line: str) -> None:
        self.process, self.log_file, self.line = process, log, line
        port = re.search(r"127\.0\.0\.1:(\d+)", line)
        metrics = re.search(r"http://\S+:(\d+)/metrics", line)
        self.address = f"127.0.0.1:{port[1]}" if port else ""
        self.metrics = f"http://127.0.0.1:{metrics[1]}" if metrics else ""

    def log(self) -> str:
        return self.log_file.read_text()

    def workers(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

    def processes(self) -> list[int]:
        return [self.process.pid, *self.workers()]

    def page(self, path: str) -> tuple[int, str]:
        """Asks the metrics port; gives status and text."""
        try:
            with urlopen(f"{self.metrics}{path}", timeout=WAIT_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()


@contextmanager
def started(root: Path, *flags: str, address: Sequence[str] = ("--port", "0")) -> Iterator[Command]:
    """Serves a repository; inside the block the command has said that it is ready, or that it ends."""
    fixed = ["--repository", str(root), "--device", "cpu", "--canary", "off", "--poll-interval-s", "0.1"]
    log = root.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen([*SERVE, *fixed, *address, *flags], stdout=subprocess.PIPE, stderr=stderr, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield Command(process, log, process.stdout.readline())
        finally:
            process.kill()


def slow_repository(root: Path) -> Path:
    """A model whose request of 64 rows takes some tenths of a second."""
    builders.bare_version(root, "slow", 1, builders.slow(rounds=600, width=256))
    return root


def slow_request(rows: int = 64) -> bytes:
    content = np.ones((rows, 256), np.float32).tobytes()
    tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=(rows, 256), content=content)
    return pb.PredictRequest(model=tensor_pb2.ModelSpec(name="slow"), inputs=[tensor]).SerializeToString()


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Opens a channel with a connection of its own."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def in_flight(channel: Any, count: int = 4) -> list[Any]:
    """Begins slow calls; they have arrived once this returns, because a call behind them is answered."""
    call = channel.unary_unary(PREDICT)
    running = [call.future(slow_request(), timeout=WAIT_S) for _ in range(count)]
    channel.unary_unary(SERVER_READY)(b"", timeout=WAIT_S)
    return running


def codes(running: list[Any]) -> set[str]:
    return {future.code().name for future in running}


def health(channel: Any) -> int:
    answer = channel.unary_unary(CHECK)(b"", timeout=WAIT_S)
    return int(health_pb2.HealthCheckResponse.FromString(answer).status)


def status_of(answer: bytes) -> int:
    return int(health_pb2.HealthCheckResponse.FromString(answer).status)


def wait_until(is_so: Callable[[], object]) -> None:
    """Looks until something is so."""
    pause = threading.Event()
    for _ in range(int(WAIT_S / 0.02)):
        if is_so():
            return
        pause.wait(0.02)
    raise AssertionError(f"it was not so within {WAIT_S} s")
