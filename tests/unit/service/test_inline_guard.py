"""A run that was expected to be short and is not leaves the loop thread, and is answered all the same."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from fitserve_service.batcher import Priority
from fitserve_service.inline_guard import InlineGuard
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.runs import Job, Prepared, Run, carry_out
from fitserve_service.session import RunawayError, RunSwitch
from fitserve_service.signature import Tensor

LONG_S = 0.02


def as_long_as_told(rounds: int = 64) -> bytes:
    """size INT64 (1) -> y FP32 (): `rounds` products of matrices of that size, one after the other."""
    shapes = [
        helper.make_node("Concat", ["size", "size"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["m0"]),
    ]
    products = [helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(rounds)]
    total = helper.make_node("ReduceSum", [f"m{rounds}"], ["y"], keepdims=0)
    return builders.model(
        [*shapes, *products, total],
        [builders.value("size", (1,), TensorProto.INT64)],
        [builders.value("y", ())],
    )


def a_run(root: Path, model: bytes, array: Any, name: str = "size", datatype: str = "INT64") -> Run:
    path = builders.bare_version(root, "m", 1, model)
    registry = Registry()
    registry.set_present("m", [1], {})
    registry.set_ready(Loader("cpu").load(path, Overrides({})))
    lease = registry.lease("m")
    prepared = Prepared.check(lease.served.signature, {name: Tensor(datatype, array)}, ())
    job = Job(lease, prepared, None, Priority.PREDICT, lambda _, __: None)
    return Run(lease.served, [job], [0.0], 1)


def test_a_short_run_is_carried_out(tmp_path: Path) -> None:
    guard, run = InlineGuard(LONG_S), a_run(tmp_path, as_long_as_told(), np.array([2], np.int64))
    assert guard.is_carried_out(run)
    answer = run.answers[0]
    assert isinstance(answer, dict)
    assert answer["y"].array == 0
    assert run.switch is None
    guard.close()


def test_a_long_run_is_ended_and_answered_elsewhere(tmp_path: Path) -> None:
    guard, run = InlineGuard(LONG_S), a_run(tmp_path, as_long_as_told(), np.array([640], np.int64))
    assert not guard.is_carried_out(run)
    run.switch = RunSwitch()
    carry_out(run)
    assert isinstance(run.answers[0], dict)
    again = a_run(tmp_path / "again", as_long_as_told(), np.array([2], np.int64))
    assert guard.is_carried_out(again), "what was ended does not end the next"
    guard.close()


def test_nothing_is_ended_where_nothing_runs_or_what_runs_has_time(tmp_path: Path) -> None:
    guard, run = InlineGuard(3600.0), a_run(tmp_path, as_long_as_told(), np.array([2], np.int64))
    guard.look()
    assert guard.is_carried_out(run)
    guard.look()
    assert guard.is_carried_out(run)
    guard.close()


def test_an_operator_that_refuses_is_told_as_ever(tmp_path: Path) -> None:
    guard = InlineGuard(LONG_S)
    run = a_run(tmp_path, builders.gather(), np.array([99], np.int64), "index")
    assert guard.is_carried_out(run)
    assert isinstance(run.answers[0], Exception)
    assert not isinstance(run.answers[0], RunawayError)
    guard.close()


@pytest.mark.parametrize("is_closed", [True, False])
def test_its_thread_ends_with_it(tmp_path: Path, is_closed: bool) -> None:
    def guards() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "inline-guard"]

    others = guards()
    guard = InlineGuard(0.01)
    assert guard.is_carried_out(a_run(tmp_path, as_long_as_told(), np.array([2], np.int64)))
    (thread,) = [each for each in guards() if each not in others]
    gone = weakref.ref(guard)
    if is_closed:
        guard.close()
    del guard
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    assert gone() is None
