"""Runs before READY have a time each, which grows with their rows, and what is ended is named with the way out."""

from __future__ import annotations

import math
from collections.abc import Callable

import builders
import numpy as np
import onnxruntime
import pytest

from fitserve_contract.onnx_file import read_facts
from fitserve_service.runtime import run_limit
from fitserve_service.runtime.run_limit import RunLimit
from fitserve_service.session import RunawayError, Session, SessionOptions
from fitserve_service.signature import Tensor


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(run_limit, "time", made)
    return made


def opened(model: bytes, limit_s: float, on_run: Callable[[float], None] | None = None) -> Session:
    return Session(model, read_facts(model), SessionOptions("cpu", run_limit_s=limit_s, on_run=on_run))


def rows(count: int) -> dict[str, Tensor]:
    return {"x": Tensor("FP32", np.ones((count, 2), np.float32))}


def test_a_run_of_more_rows_may_take_longer_by_what_a_row_took(clock: Clock) -> None:
    told: list[float] = []
    limit = RunLimit(onnxruntime.RunOptions(), 5.0, told.append)
    limit.begin(1)
    clock.now_s += 3.0
    limit.end()
    limit.begin(8)
    assert told == [0.0, 0.0, 4 * 8 * 3.0]
    assert "run 8 rows within 96 s before it is READY" in limit.problem()
    clock.now_s += 8.0
    limit.end()
    limit.begin(1)
    assert "run a row within 12 s" in limit.problem()


def test_a_short_run_leaves_the_limit_as_it_is(clock: Clock) -> None:
    limit = RunLimit(onnxruntime.RunOptions(), 5.0)
    limit.begin(2)
    clock.now_s += 0.2
    limit.end()
    limit.begin(4)
    assert "run 4 rows within 5 s" in limit.problem()


@pytest.mark.parametrize(("limit_s", "value"), [(0.05, "1"), (60.0, "60"), (1e6, "3600")])
def test_the_value_named_works_when_copied(limit_s: float, value: str) -> None:
    assert RunLimit(onnxruntime.RunOptions(), limit_s).problem().endswith(f"--canary-limit-s {value}")


def test_a_run_without_an_end_is_ended_and_the_option_named() -> None:
    session = opened(builders.endless(), 0.05)
    with session.limit() as limit, pytest.raises(RunawayError, match=r"does it loop for ever\?.*--canary-limit-s 1$"):
        session.run(rows(1), ["y"], limit)


def test_runs_together_may_take_longer_than_the_limit() -> None:
    session = opened(builders.slow_rows(200), 10.0)
    with session.limit() as limit:
        for _ in range(3):
            assert session.run(rows(2), ["y"], limit)["y"].array.tolist() == [[2, 2], [2, 2]]
    assert not limit.options.terminate


def test_who_wants_to_know_is_told_of_each_run_that_begins_and_ends() -> None:
    told: list[float] = []
    session = opened(builders.scaled(), math.inf, told.append)
    with session.limit() as limit:
        session.run(rows(1), ["y"], limit)
        session.run(rows(4), ["y"], limit)
    assert told[:2] == [0.0, 0.0]
    assert told[2] > 0.0 == told[3]
