"""The demo, by its command, from training to requests/s; and that nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fitserve_contract import repository

DEMO = [str(Path(sysconfig.get_path("scripts"), "fitserve-bench")), "demo", "--device", "cpu"]
SMALL = [
    *("--train-option=--data=digits", "--train-option=--set=epochs=3", "--train-option=--compile=off"),
    *("--batch-sizes", "1", "--trials", "3", "--budget-s", "0.1", "--in-flight", "2", "--seconds", "0.3"),
]


def places(folder: Path) -> list[str]:
    return ["--repository", str(folder / "models"), "--runs", str(folder / "runs"), "--output-dir", str(folder / "out")]


@pytest.mark.slow
def test_one_command_goes_from_training_to_requests_per_second(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*DEMO, *SMALL, *places(tmp_path)], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = {line.split("  ")[0]: line for line in finished.stdout.splitlines()}
    summary = json.loads((tmp_path / "runs" / "lenet" / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.4f}" in lines["test accuracy"]
    assert "max |onnxruntime − torch|" in lines["export verified"]
    correct_count = round(summary["test_accuracy"] * summary["data"]["held_out_count"])
    assert f"{correct_count} of 359 right, torch {correct_count}; served by" in " ".join(finished.stdout.split())
    assert all(name in lines["latency, batch 1"] for name in ("torch eager", "torch.compile", "ONNX Runtime"))
    assert "requests/s" in lines["over the wire, 2 in flight"]
    assert repository.versions(tmp_path / "models", "lenet") == [1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "latency-lenet.json", "latency-lenet.svg", "wire-lenet.json",
    }  # fmt: skip
    log = (tmp_path / "runs" / "demo" / "server.log").read_text()
    port = log.partition("fitserve is ready on 127.0.0.1:")[2].split(",")[0]
    assert not is_listening(int(port))


def test_a_step_that_fails_is_named_and_ends_the_demo(tmp_path: Path) -> None:
    finished = subprocess.run(
        [*DEMO, "--train-option=--set=nonsense=1", *places(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 1
    assert "nonsense" in finished.stderr
    assert "fitserve-train: expected exit code 0, got 2" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [*DEMO, "--train-option=--data=digits", "--train-option=--set=epochs=100000", *places(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("epoch "):
                break
        demo.send_signal(signal.SIGINT)
        # The end of both pipes, which every process of the demo holds: all of them are gone.
        _, errors = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "fitserve-bench: interrupted" in errors


def is_listening(port: int) -> bool:
    """Tells whether some process listens on a local TCP port."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)
