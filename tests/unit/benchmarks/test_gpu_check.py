"""The GPU check: what is run, what is not and why, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitserve_benchmarks import gpu_check
from fitserve_benchmarks.floors import DeviceRates, floor_of
from fitserve_benchmarks.gpu_check import GpuPlan, Step, run_gpu_check, why_not
from fitserve_benchmarks.gpu_check_report import report_text, save_report
from fitserve_benchmarks.programs import StepFailedError


def quiet(_: str) -> None:
    """Takes progress and drops it."""


def broken(_: GpuPlan) -> Mapping[str, Any]:
    raise StepFailedError("fitserve-train: expected exit code 0, got 2: no data | none at all")


def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, *steps: Step) -> dict[str, Any]:
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    return run_gpu_check(GpuPlan(tmp_path, tmp_path, device=device), quiet)


def test_a_step_that_lacks_the_gpu_is_not_run_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "why_not", lambda _: "torch sees no CUDA device")
    seen = Step("doctor", lambda _: {"found": 1}, needs_gpu=False)
    report = checked(monkeypatch, tmp_path, "cuda", seen, Step("train", broken), Step("export", broken, ("train",)))

    states = {step["name"]: (step["state"], step["reason"]) for step in report["steps"]}
    missing = ("not run", "torch sees no CUDA device")
    assert states == {"doctor": ("done", ""), "train": missing, "export": missing}
    assert not report["is_rehearsal"]


def test_a_step_that_fails_stops_only_those_that_need_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = Step("other", lambda _: {})
    report = checked(monkeypatch, tmp_path, "cpu", Step("train", broken), Step("export", broken, ("train",)), other)

    states = {step["name"]: (step["state"], step["reason"]) for step in report["steps"]}
    assert states["train"][0] == "failed"
    assert "no data" in states["train"][1]
    assert states["export"] == ("not run", "needs the step 'train', which is failed")
    assert states["other"] == ("done", "")
    text = report_text(report)
    assert "rehearsal on the CPU" in text
    assert "no data / none at all" in text


def test_the_reports_are_named_by_the_gpu_or_by_its_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(monkeypatch, tmp_path, "cuda", Step("doctor", lambda _: {}, needs_gpu=False))
    for gpus, stem in (([], "gpu-check-no-gpu"), (["NVIDIA H200, 570.1"], "gpu-check-nvidia-h200")):
        report["environment"]["gpus"] = gpus
        paths = save_report(report, tmp_path / "results")
        assert [path.name for path in paths] == [f"{stem}.json", f"{stem}.md"]
    assert json.loads(paths[0].read_text())["steps"][0]["name"] == "doctor"
    assert save_report({**report, "is_rehearsal": True}, tmp_path)[0].name == "gpu-check-rehearsal.json"


def test_without_cuda_the_reason_is_given() -> None:
    assert why_not("cpu") == ""
    if not torch.cuda.is_available():
        assert "CUDA" in why_not("cuda")


def test_floors_count_bytes_and_operations_of_a_call() -> None:
    rates = DeviceRates("cpu", bytes_per_s=1e3, operations_per_s=1e2, launch_s=1e-6)
    floor = floor_of(torch.nn.Linear(3, 5), {"x": np.zeros((4, 3), np.float32)}, rates)

    assert floor.bytes_moved == 4 * (3 * 5 + 5 + 4 * 3 + 4 * 5)
    assert floor.operations == 2 * 4 * 3 * 5
    assert floor.bytes_s == pytest.approx(floor.bytes_moved / 1e3)
    assert floor.operations_s == pytest.approx(1.2)
    assert floor.batch_size == 4
