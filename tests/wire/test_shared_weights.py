"""Several workers have a large model's weights in memory once, answer alike, and leave nothing behind."""

from __future__ import annotations

import json
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
from urllib.request import urlopen

import builders
import numpy as np
import pytest
from onnx import helper

from fitserve_client import Client
from fitserve_contract.onnx_file import read_facts
from fitserve_service.session import Session, SessionOptions
from fitserve_service.signature import Tensor

WAIT_S = 60.0
WIDTH = 1024
LAYERS = 8
WEIGHT_BYTES = LAYERS * WIDTH * WIDTH * 4
COMMAND = (sys.executable, "-c", "from fitserve_service.cli import main; main()")


def layers(seed: int) -> bytes:
    """x FP32 (B, WIDTH) -> y, LAYERS matrix products with a Tanh after each: 32 MiB."""
    random = np.random.default_rng(seed)
    weights = {f"w{n}": (random.standard_normal((WIDTH, WIDTH)) / 32).astype(np.float32) for n in range(LAYERS)}
    nodes, last = [], "x"
    for number, name in enumerate(weights):
        nodes += [
            helper.make_node("MatMul", [last, name], [f"h{number}"]),
            helper.make_node("Tanh", [f"h{number}"], [f"t{number}"]),
        ]
        last = f"t{number}"
    ends = [builders.value("x", ("B", WIDTH))], [builders.value(last, ("B", WIDTH))]
    return builders.model(nodes, *ends, weights)


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Starts two workers that keep copies in `folder`; gives the process, its gRPC address and its metrics address."""
    (folder / "copies").mkdir()
    fixed = ["--repository", str(folder / "repository"), "--port", "0", "--metrics-port", "0", "--device", "cpu"]
    flags = ["--workers", "2", "--poll-interval-s", "0.1", "--canary", "off"]
    environment = os.environ | {"TMPDIR": str(folder / "copies")}
    with subprocess.Popen([*COMMAND, *fixed, *flags], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ports = re.search(r"127\.0\.0\.1:(\d+).*http://127\.0\.0\.1:(\d+)/metrics", line)
            assert ports, line
            yield process, f"127.0.0.1:{ports[1]}", f"http://127.0.0.1:{ports[2]}"
        finally:
            process.kill()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def shared_bytes(pid: int, folder: Path) -> int:
    """Counts the pages of files below a folder that a process has together with others."""
    total, is_below = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_below = str(folder) in line
        elif is_below and (found := re.match(r"Shared_(?:Clean|Dirty):\s+(\d+) kB", line)):
            total += int(found[1]) << 10
    return total


def copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "copies").glob("fitserve-weights-*/*") if path.is_dir()]


def status(metrics: str) -> dict[str, Any]:
    with urlopen(f"{metrics}/status.json", timeout=WAIT_S) as answer:
        document: dict[str, Any] = json.loads(answer.read())
    return document


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until
        threading.Event().wait(0.02)


def expected_answer(model: bytes, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = Session(model, read_facts(model), SessionOptions("cpu"))
    name = session.outputs[0].name
    answer: np.ndarray[Any, Any] = session.run({"x": Tensor("FP32", rows)}, [name])[name].array
    return answer


@pytest.mark.parametrize("is_swapped", [False, True])
def test_two_workers_hold_the_weights_once_and_give_them_back(tmp_path: Path, is_swapped: bool) -> None:
    root = tmp_path / "repository"
    builders.bare_version(root, "m", 1, layers(1))
    rows = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
    with started(tmp_path) as (process, address, metrics):
        before = copies(tmp_path)
        assert len(before) == 1
        if is_swapped:
            complete = builders.bare_version(tmp_path / "elsewhere", "m", 2, layers(2)).folder
            complete.rename(root / "m" / "2")
            wait_until(lambda: copies(tmp_path) not in ([], before) and len(copies(tmp_path)) == 1)
        workers = workers_of(process)
        assert len(workers) == 2
        for pid in workers:
            assert shared_bytes(pid, tmp_path) > 0.8 * WEIGHT_BYTES
        for worker in status(metrics)["workers"]:
            assert worker["resident_bytes"] - worker["private_bytes"] > 0.8 * WEIGHT_BYTES
        with urlopen(f"{metrics}/metrics", timeout=WAIT_S) as answer:
            private = re.findall(
                r'fitserve_worker_memory_bytes\{kind="private",worker="([01])"\}', answer.read().decode()
            )
        assert sorted(private) == ["0", "1"]
        expected = expected_answer(layers(2 if is_swapped else 1), rows)
        for _ in range(8):
            with Client(address) as client:
                assert client.predict("m", rows).outputs[f"t{LAYERS - 1}"].tobytes() == expected.tobytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert list((tmp_path / "copies").glob("fitserve-weights-*")) == []


@pytest.mark.slow
def test_a_worker_that_is_started_again_maps_what_is_there(tmp_path: Path) -> None:
    builders.bare_version(tmp_path / "repository", "m", 1, layers(1))
    with started(tmp_path) as (process, _, metrics):
        (copy,) = copies(tmp_path)
        made_ns = copy.stat().st_ctime_ns
        victim = min(workers_of(process))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(status(metrics)["workers"]) == 2 and victim not in workers_of(process))
        assert all(shared_bytes(pid, tmp_path) > 0.8 * WEIGHT_BYTES for pid in workers_of(process))
        assert copy.stat().st_ctime_ns == made_ns
