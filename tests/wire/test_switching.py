"""Several workers that take a new version together: no caller meets an older one than another has met before."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tests import builders
from tests.wire.test_workers import PREDICT, Running, predict_request, started, wait_until

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve_client import Client
from fitserve_client.control import set_label

WAIT_S = 60.0


def answer(address: str) -> float:
    """Asks on a connection of its own, which the kernel deals to any worker; returns the factor that answered."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(PREDICT)  # type: ignore[call-arg]
        content = call(predict_request("m"), timeout=WAIT_S, wait_for_ready=True)
    response = pb.PredictResponse.FromString(content)
    return float(np.frombuffer(response.outputs[0].content, np.float32)[0])


class Callers:
    """Ask on and on, and note each answer that is older than one that came before the question."""

    def __init__(self, address: str, count: int = 2) -> None:
        self.newest = 0.0
        self.went_back: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            before = self.newest
            try:
                found = answer(self._address)
            except grpc.RpcError as error:
                self.failures.append(str(error))
                continue
            if found < before:
                self.went_back.append((before, found))
            self.newest = max(self.newest, found)

    @contextmanager
    def asking(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def publish(root: Path, version: int) -> None:
    """Publishes the next version, which is this one: it multiplies by its number."""
    builders.publish_version(root, "m", builders.scaled(float(version)))


def test_no_caller_goes_back_a_version_while_versions_come(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    with started(tmp_path, "--workers", "3", "--canary", "off") as running:
        callers = Callers(running.address)
        with callers.asking():
            for version in range(2, 8):
                publish(tmp_path, version)
                wait_until(lambda version=version: callers.newest == version)  # type: ignore[misc]
        assert (callers.went_back, callers.failures) == ([], [])


def replaced(running: Running, victim: int) -> bool:
    return victim not in running.workers() and running.starts() == 3


def test_a_stopped_worker_is_replaced_and_delays_a_switch_no_longer_than_that(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    with started(tmp_path, "--canary", "off") as running:
        counted = running.ok_count()
        victim = min(running.workers())
        os.kill(victim, signal.SIGSTOP)
        publish(tmp_path, 2)
        # The page is that of the other, and of what this one said last.
        assert running.ok_count() == counted
        wait_until(lambda: replaced(running, victim))
        assert {answer(running.address) for _ in range(16)} == {2.0}
        log = running.log.read_text()
        assert "has not answered for 5 s: the process is stopped" in log
        assert running.page("/healthz") == "ok\n"


def test_a_label_that_was_moved_is_where_every_worker_has_it(tmp_path: Path) -> None:
    for version in (1, 2):
        publish(tmp_path, version)
    with started(tmp_path, "--canary", "off") as running, Client(running.address) as client:
        for version in (1, 2, 1, 2):
            client.run(set_label("m", "stable", version))
            assert {answer(running.address) for _ in range(12)} == {float(version)}
