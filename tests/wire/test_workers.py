"""fitserve-serve with several workers: one port, one word on what is ready, nobody stays dead, all end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from tests import builders

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_client import Client

WAIT_S = 60.0
COMMAND = (sys.executable, "-c", "from fitserve_service.cli import main; main()")
PREDICT = "/fitserve.inference.v1.InferenceService/Predict"
UNLOAD = "/fitserve.control.v1.ModelControlService/UnloadModel"
LOAD = "/fitserve.control.v1.ModelControlService/LoadModel"


class Running:
    """A started command: where it listens and which processes it is."""

    def __init__(self, process: subprocess.Popen[str], line: str, log: Path) -> None:
        self.process = process
        self.log = log
        self.line = line
        ports = re.search(r"127\.0\.0\.1:(\d+).*http://127\.0\.0\.1:(\d+)/metrics", line)
        assert ports, line
        self.address, self.metrics = f"127.0.0.1:{ports[1]}", f"http://127.0.0.1:{ports[2]}"

    def workers(self) -> set[int]:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}

    def starts(self) -> int:
        """How many workers have come to listen so far."""
        return self.log.read_text().count("takes calls")

    def page(self, path: str) -> str:
        with urlopen(f"{self.metrics}{path}", timeout=WAIT_S) as answer:
            text: str = answer.read().decode()
            return text

    def ok_count(self) -> float:
        found = re.findall(r'fitserve_requests_total\{code="OK",[^}]*\} (\S+)', self.page("/metrics"))
        return sum(map(float, found))


@contextmanager
def started(root: Path, *flags: str) -> Iterator[Running]:
    """Starts the command with two workers, gives it once it is ready, and kills what is left of it."""
    fixed = ["--repository", str(root), "--port", "0", "--metrics-port", "0", "--device", "cpu", "--workers", "2"]
    command = [*COMMAND, *fixed, "--poll-interval-s", "0.1", *flags]
    log = root.with_suffix(".log")
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield Running(process, process.stdout.readline(), log)
        finally:
            process.kill()


def repository(root: Path) -> Path:
    builders.bare_version(root, "twice", 1, builders.scaled())
    return root


def predict_request(name: str = "twice") -> bytes:
    content = np.ones((1, 2), np.float32).tobytes()
    tensor = tensor_pb2.Tensor(name="x", datatype="FP32", shape=(1, 2), content=content)
    return pb.PredictRequest(model=tensor_pb2.ModelSpec(name=name), inputs=[tensor]).SerializeToString()


def call_once(address: str, method: str, message: bytes) -> str:
    """Makes one call on a connection of its own, which the kernel deals to any worker; gives the code's name."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(method)  # type: ignore[call-arg]
        try:
            call(message, timeout=WAIT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            failed: Any = error
            return str(failed.code().name)
    return "OK"


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until
        threading.Event().wait(0.02)


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_connections_reach_all_workers_and_one_port_counts_for_all(tmp_path: Path) -> None:
    with started(repository(tmp_path)) as running:
        assert "with 2 workers" in running.line
        assert "twice version 1 on CPUExecutionProvider" in running.line
        assert [call_once(running.address, PREDICT, predict_request()) for _ in range(24)] == ["OK"] * 24
        assert running.ok_count() == 24
        assert '"state": "READY"' in running.page("/status.json")
        assert running.page("/healthz") == "ok\n"
        assert "<html" in running.page("/")


def test_a_killed_worker_is_followed_by_another_and_loses_no_caller(tmp_path: Path) -> None:
    with started(repository(tmp_path)) as running, Client(running.address) as client:
        before = running.workers()
        victim = min(before)
        stop, failures, answers = threading.Event(), [], [0]

        def call_on() -> None:
            while not stop.is_set():
                try:
                    client.predict("twice", np.ones((1, 2), np.float32))
                    answers[0] += 1
                except Exception as error:
                    failures.append(error)

        caller = threading.Thread(target=call_on)
        caller.start()
        wait_until(lambda: answers[0] > 10)
        counted = running.ok_count()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: running.starts() == 3)
        seen = answers[0]
        wait_until(lambda: answers[0] > seen + 10)
        stop.set()
        caller.join()
        assert failures == []
        assert running.ok_count() >= counted
        assert len(running.workers() & before) == 1


def test_an_unload_reaches_all_workers_those_to_come_too(tmp_path: Path) -> None:
    with started(repository(tmp_path)) as running:
        assert (
            call_once(running.address, UNLOAD, control_pb2.UnloadModelRequest(name="twice").SerializeToString()) == "OK"
        )
        assert {call_once(running.address, PREDICT, predict_request()) for _ in range(16)} == {"UNAVAILABLE"}
        os.kill(min(running.workers()), signal.SIGKILL)
        wait_until(lambda: running.starts() == 3)
        assert {call_once(running.address, PREDICT, predict_request()) for _ in range(16)} == {"UNAVAILABLE"}
        assert call_once(running.address, LOAD, control_pb2.LoadModelRequest(name="twice").SerializeToString()) == "OK"
        assert {call_once(running.address, PREDICT, predict_request()) for _ in range(16)} == {"OK"}
        missing = control_pb2.LoadModelRequest(name="nobody").SerializeToString()
        assert call_once(running.address, LOAD, missing) == "NOT_FOUND"


def test_a_signal_ends_all_well(tmp_path: Path) -> None:
    with started(repository(tmp_path)) as running:
        workers = running.workers()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(WAIT_S) == 0
        assert all(map(is_gone, workers))
        with pytest.raises(URLError):
            running.page("/healthz")


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    with started(repository(tmp_path)) as running:
        workers = running.workers()
        assert len(workers) == 2
        running.process.kill()
        wait_until(lambda: all(map(is_gone, workers)))


@pytest.mark.parametrize("flags", [("--repository", "/nowhere"), ("--host", "0.0.0.0")])
def test_what_one_refuses_all_refuse(tmp_path: Path, flags: tuple[str, str]) -> None:
    fixed = ["--repository", str(tmp_path), "--port", "0", "--metrics-port", "off", "--workers", "2"]
    ran = subprocess.run([*COMMAND, *fixed, *flags], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"fitserve-serve: {flags[0]}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_port_that_another_server_shares_is_refused(tmp_path: Path) -> None:
    with started(repository(tmp_path)) as running:
        port = running.address.rpartition(":")[2]
        fixed = ["--repository", str(tmp_path), "--port", port, "--metrics-port", "off", "--workers", "2"]
        ran = subprocess.run([*COMMAND, *fixed], capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert ran.returncode == 2
        assert f"port {port} on 127.0.0.1 is in use" in ran.stderr


def test_a_quota_holds_over_all_workers_together(tmp_path: Path) -> None:
    root, access = tmp_path / "repository", tmp_path / "access.toml"
    builders.publish_version(root, "m", builders.scaled())
    access.write_text('[anonymous]\nscopes = ["infer"]\n[quotas.default]\nrequests_per_s = 0.001\nburst = 20\n')
    access.chmod(0o600)
    options = [("grpc.use_local_subchannel_pool", 1)]
    codes = []
    with started(root, "--access-file", str(access)) as server:
        for _ in range(16):
            with grpc.insecure_channel(server.address, options=options) as opened:
                channel: Any = opened
                for _ in range(3):
                    try:
                        channel.unary_unary(PREDICT)(predict_request("m"), timeout=WAIT_S)
                    except grpc.RpcError as caught:
                        error: Any = caught
                        codes.append(error.code())
                    else:
                        codes.append(grpc.StatusCode.OK)
    assert codes.count(grpc.StatusCode.OK) == 20
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 28
