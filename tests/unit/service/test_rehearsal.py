"""A rehearsal takes requests the whole way and leaves no trace of them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import helper

from fitserve_service import rehearsal
from fitserve_service.costs import CostTable
from fitserve_service.known_model import ModelSnapshot
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.rehearsal import rehearse

CALLS = 2 * 12 * 3


class Turning(CostTable):
    """Says that runs are short when it is first asked, and how long they are after that."""

    def __init__(self, run_s: float) -> None:
        super().__init__()
        self._told_s = [run_s, 0.0001]

    def floor_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
        return self._told_s.pop() if len(self._told_s) > 1 else self._told_s[0]


class Long(CostTable):
    """Says that every run takes a second."""

    def floor_s(self, rows: int, row_elements: int) -> float:  # noqa: ARG002
        return 1.0


def loaded(root: Path, *models: bytes) -> tuple[ModelSnapshot, ...]:
    registry = Registry()
    for number, model in enumerate(models):
        path = builders.bare_version(root, f"m{number}", 1, model)
        registry.set_present(path.model, [1], {})
        registry.set_ready(Loader("cpu").load(path, Overrides({})))
    return registry.snapshot()


@pytest.mark.parametrize(
    "model",
    [
        builders.scaled(),
        builders.two_in_two_out(),
        builders.fixed_shape(),
        builders.default_input(),
        builders.identity("BYTES", ("B",)),
        builders.identity("BF16"),
        builders.identity("BOOL", ()),
    ],
)
def test_every_call_is_answered_and_none_is_counted(tmp_path: Path, model: bytes) -> None:
    models = loaded(tmp_path, model)
    assert rehearse(models, lambda: 0.0) == CALLS
    served = models[0].versions[0].served
    assert served is not None
    assert served.statistics.execution_count == 0
    assert served.statistics.success.count == 0
    assert served.costs.expected_s(1, 1) > 0


@pytest.mark.parametrize("run_s", [0.0001, 1.0])
def test_a_version_that_was_rehearsed_is_freed_at_once(tmp_path: Path, run_s: float) -> None:
    models = loaded(tmp_path, builders.scaled())
    served = models[0].versions[0].served
    assert served is not None
    # What looked short may be found to be long while it is rehearsed.
    served.costs = Turning(run_s)
    session = weakref.ref(served.session)
    gc.collect()
    gc.disable()
    try:
        assert rehearse(models, lambda: 0.0) == CALLS
        del models, served
        assert session() is None, "only the collector would find it, and its weights stay until then"
    finally:
        gc.enable()


def test_a_model_that_only_its_own_callers_can_feed_is_left_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = {"shape": np.array([7, 7], np.int64)}
    picky = builders.model(nodes, [builders.value("x", ("N",))], [builders.value("y", (7, 7))], shape)
    assert rehearse(loaded(tmp_path, picky), lambda: 0.0) == 0


def test_models_that_run_on_other_threads_are_left_out(tmp_path: Path) -> None:
    models = loaded(tmp_path, builders.linear(), builders.scaled())
    served = models[0].versions[0].served
    assert served is not None
    served.costs = Long()
    assert rehearse(models, lambda: 0.0) == CALLS


def test_a_version_whose_rehearsal_breaks_off_is_freed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded(tmp_path, builders.scaled())
    monkeypatch.setattr(rehearsal, "InferenceServicer", lambda _: 1 // 0)
    freed = []
    retire = Registry.retire
    monkeypatch.setattr(Registry, "retire", lambda *given: (freed.append(given[1:3]), retire(*given)))
    assert rehearse(models, lambda: 0.0) == 0
    assert freed == [("m0", 1)]


def test_once_the_time_is_spent_the_rest_is_left_out(tmp_path: Path) -> None:
    models = loaded(tmp_path, builders.scaled(), builders.linear())
    times = iter(np.arange(1000) * 0.06)
    assert 0 < rehearse(models, lambda: float(next(times))) < CALLS


def test_what_goes_wrong_is_logged_and_hurts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = loaded(tmp_path, builders.scaled(), builders.linear())
    first = models[0].versions[0].served
    rows_of = rehearsal.made_up_rows

    def broken(specs: object) -> object:
        if first is not None and specs is first.session.inputs:
            raise RuntimeError("broken")
        return rows_of(specs)  # type: ignore[arg-type]

    monkeypatch.setattr(rehearsal, "made_up_rows", broken)
    assert rehearse(models, lambda: 0.0) == CALLS
    assert "m0 version 1 could not be rehearsed" in caplog.text
