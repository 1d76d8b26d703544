"""What the collector of cycles has to do: nothing for requests, and seldom."""

from __future__ import annotations

import gc
from pathlib import Path

import builders
import numpy as np
import pytest

from fitserve_service import collector, rehearsal
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.signature import Tensor


def test_no_request_leaves_a_cycle_behind(tmp_path: Path) -> None:
    served = Loader("cpu").load(builders.bare_version(tmp_path, "m", 1, builders.scaled()), Overrides({}))
    inputs = {"x": Tensor("FP32", np.ones((1, 2), np.float32))}
    messages = (rehearsal._predict_message(served, inputs), rehearsal._infer_message(served, inputs))
    stage = rehearsal._Stage(served)
    methods = stage.methods()
    found = []
    try:
        for count in (50, 100, 200):
            gc.collect()
            gc.disable()
            for _ in range(count):
                assert all(stage.is_answered(*each) for each in zip(methods, messages, strict=True))
            found.append(gc.collect())
    finally:
        gc.enable()
        stage.close()
    # What does not grow with the requests is not theirs.
    assert found[2] - found[1] < 50


def test_what_is_there_is_here_to_stay_and_looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, ...]] = []
    monkeypatch.setattr(gc, "freeze", lambda: done.append(()))
    monkeypatch.setattr(gc, "set_threshold", lambda *thresholds: done.append(thresholds))
    collector.settle()
    assert done == [(), (20_000, 20, 20)]
