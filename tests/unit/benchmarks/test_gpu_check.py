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
from fitserve_benchmarks.floors import DeviceRates, floor_of, training_floor
from fitserve_benchmarks.gpu_check import Step, run_gpu_check, step_names, why_not
from fitserve_benchmarks.gpu_check_report import report_text, save_report
from fitserve_benchmarks.gpu_explanation import explanation, floor_lines
from fitserve_benchmarks.gpu_steps import GpuPlan, NotRunError, goemotions
from fitserve_benchmarks.programs import StepFailedError


def quiet(_: str) -> None:
    """Takes progress and drops it."""


def broken(_: GpuPlan) -> Mapping[str, Any]:
    raise StepFailedError("fitserve-train: expected exit code 0, got 2: no data | none at all")


def lacking(_: GpuPlan) -> Mapping[str, Any]:
    raise NotRunError("needs fashion-mnist in the data directory")


def bug(_: GpuPlan) -> Mapping[str, Any]:
    raise KeyError("nothing of that name")


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
    after = (Step("lacking", lacking), Step("bug", bug), Step("other", lambda _: {}))
    report = checked(monkeypatch, tmp_path, "cpu", Step("train", broken), Step("export", broken, ("train",)), *after)

    states = {step["name"]: (step["state"], step["reason"]) for step in report["steps"]}
    assert states["train"][0] == "failed"
    assert "no data" in states["train"][1]
    assert states["export"] == ("not run", "needs the step 'train', which is failed")
    assert states["lacking"] == ("not run", "needs fashion-mnist in the data directory")
    assert states["bug"] == ("failed", "KeyError: 'nothing of that name'")
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


def test_a_training_step_costs_three_times_the_operations_and_moves_the_weights_thrice_more() -> None:
    rates = DeviceRates("cpu", bytes_per_s=1e3, operations_per_s=1e2, launch_s=1e-6, copy_bytes_per_s=1e1)
    module, batch = torch.nn.Linear(3, 5), {"x": np.zeros((4, 3), np.float32)}
    forward, step = floor_of(module, batch, rates), training_floor(module, batch, rates)

    assert step.operations == 3 * forward.operations
    assert step.bytes_moved - forward.bytes_moved == 3 * 4 * (3 * 5 + 5)
    assert forward.copy_s == pytest.approx(4 * (4 * 3 + 4 * 5) / 10)
    assert step.least_s == pytest.approx(max(step.bytes_s, step.operations_s))


def test_steps_are_asked_for_by_name_with_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--steps: expected some of doctor, .*; got 'dance'"):
        step_names("train,dance")
    assert step_names("") == ()
    steps = tuple(
        Step(name, lambda _: {}, needs) for name, needs in (("a", ()), ("b", ("a",)), ("c", ()), ("d", ("b",)))
    )
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    report = run_gpu_check(GpuPlan(tmp_path, tmp_path, device="cpu", steps=("d",)), quiet)
    assert [(step["name"], step["state"]) for step in report["steps"]] == [
        ("a", "done"),
        ("b", "done"),
        ("c", "not run"),
        ("d", "done"),
    ]


FLOOR = {"batch_size": 8, "bytes_s": 2e-6, "operations_s": 4e-6, "copy_s": 1e-5, "least_s": 4e-6}


@pytest.mark.parametrize(
    ("device_s", "host_s", "text"),
    [
        (6e-6, None, "operations"),
        (15e-6, None, "one launch"),
        (64e-6, None, "launches and kernels below the floors' rates: 6.00 launches' time"),
        (6e-6, 26e-6, "operations; copies are 50% of what host to host adds"),
        (None, 64e-6, "launches and kernels below the floors' rates: 6.00 launches' time"),
        (None, None, "nothing was measured on it"),
    ],
)
def test_a_time_is_explained_by_its_floors_a_launch_and_the_copies(
    device_s: float | None, host_s: float | None, text: str
) -> None:
    assert explanation(FLOOR, 1e-5, device_s, host_s) == text


def test_the_floors_stand_beside_the_fastest_row_that_answers_rightly() -> None:
    rates = {
        "device": "cuda",
        "bytes_per_s": 4e12,
        "operations_per_s": 5e13,
        "launch_s": 1e-5,
        "copy_bytes_per_s": 1e10,
    }

    def row(contestant: str, microseconds: float, **changes: Any) -> dict[str, Any]:
        plain = {"skipped": None, "agrees": True, "device": "cuda", "batch_size": 8, "transfer": "host to host"}
        return {**plain, "contestant": contestant, "median_s": {"estimate": microseconds * 1e-6}, **changes}

    rows = [
        row("ONNX Runtime", 80.0),
        row("ONNX Runtime IO binding", 40.0),
        row("wrong", 1.0, agrees=False),
        row("absent", 1.0, skipped="no"),
        row("cpu", 1.0, device="cpu"),
        row("on the device", 20.0, transfer="device to device"),
    ]
    text = "\n".join(floor_lines({"rates": rates, "floors": [FLOOR]}, rows))
    assert "4,000 GB/s on the device, 50.0 TFLOP/s fp32" in text
    assert "| 20.0 µs, 5.00× the floor (on the device) | 40.0 µs, 10.0× the floor (ONNX Runtime IO binding) |" in text


def test_goemotions_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    with pytest.raises(
        NotRunError, match="needs goemotions in the data directory: --data-dir or DATA_DIR, got neither"
    ):
        goemotions(GpuPlan(tmp_path, tmp_path, device="cpu"))
    (tmp_path / "goemotions").mkdir()
    with pytest.raises(NotRunError, match="needs a GPU"):
        goemotions(GpuPlan(tmp_path, tmp_path, device="cpu", data_dir=tmp_path))
