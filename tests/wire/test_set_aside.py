"""A model that crashes the runtime by a request's values takes its worker, not the service, and is set aside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests import builders
from tests.wire.test_workers import Running, started

from fitserve_client import Client, FitserveError
from fitserve_client.errors import UnavailableError
from fitserve_client.retry import RetryPolicy

WAIT_S = 60.0
LOWEST = np.array([[np.iinfo(np.int32).min]], np.int32)
"""Its quotient by -1 is none: the processor says so by SIGFPE, and ONNX Runtime 1.31 does not ask before."""


def until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end_s
        threading.Event().wait(0.02)


def answer(client: Client) -> int | None:
    """Asks for the quotient that killed; None while the version is FAILED."""
    try:
        return int(client.predict("killer", LOWEST).array[0, 0])
    except FitserveError:
        return None


def has_crashed(running: Running, count: int) -> bool:
    """Whether the log lays so many crashes at the killer's door."""
    return running.log.read_text().count("crashed (SIGFPE) while running killer version 1") == count


@pytest.mark.parametrize(("workers", "limit"), [pytest.param(1, 3, marks=pytest.mark.slow), (2, 2)])
def test_a_model_that_crashes_is_set_aside_and_the_others_go_on(tmp_path: Path, workers: int, limit: int) -> None:
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    path = builders.bare_version(tmp_path, "killer", 1, builders.killer())
    ones = np.ones((1, 2), np.float32)
    once = RetryPolicy(max_attempts=1)
    with (
        started(tmp_path, "--workers", f"{workers}", "--crash-limit", f"{limit}") as running,
        Client(running.address, retry=once) as hostile,
        Client(running.address, timeout_s=WAIT_S) as innocent,
    ):
        for count in range(1, limit + 1):
            innocent.wait_until_ready("killer", timeout_s=WAIT_S)
            with pytest.raises(UnavailableError, match="expected an answer, got none"):
                hostile.predict("killer", LOWEST)
            until(partial(has_crashed, running, count))
        innocent.wait_until_ready("twice", timeout_s=WAIT_S)
        assert (innocent.predict("twice", ones).array == 2).all()
        with pytest.raises(FitserveError, match=f"set aside: it crashed its worker {limit} times in 600 s"):
            innocent.predict("killer", np.ones((1, 1), np.int32))
        status = running.page("/status.json")
        assert '"state": "FAILED"' in status
        assert "set aside" in status
        metrics = running.page("/metrics")
        assert f'fitserve_worker_crashes_total{{model="killer",version="1"}} {limit}.0' in metrics
        assert 'fitserve_version_set_aside{model="killer",version="1"} 1.0' in metrics
        assert f"fitserve_worker_restarts_total {limit}.0" in metrics

        (path.folder / "model.onnx").write_bytes(builders.killer(2))
        until(lambda: answer(innocent) == np.iinfo(np.int32).min // 2)


def test_a_model_that_crashes_whoever_loads_it_is_set_aside_before_the_server_is_ready(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "deadly", 1, builders.deadly())
    builders.bare_version(tmp_path, "twice", 1, builders.scaled())
    flags = ["--workers", "1", "--crash-limit", "2", "--canary", "off"]
    with started(tmp_path, *flags) as running, Client(running.address, timeout_s=WAIT_S) as client:
        client.wait_until_ready("twice", timeout_s=WAIT_S)
        assert (client.predict("twice", np.ones((1, 2), np.float32)).array == 2).all()
        with pytest.raises(FitserveError, match="set aside: it crashed its worker 2 times"):
            client.predict("deadly", np.ones((1, 2), np.float32))
        assert running.log.read_text().count("crashed (SIGFPE) while running deadly version 1") == 2
