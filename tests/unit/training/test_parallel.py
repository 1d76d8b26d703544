"""Two real processes take the steps of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitserve_training.config import Values
from fitserve_training.errors import UsageError
from fitserve_training.launch import Request, train
from fitserve_training.parallel import Workers, joined_workers

SETTINGS: Values = {"data.name": "digits", "epochs": 3, "batch_size": 85, "momentum": 0.9, "checkpoint_every_s": 0}


@given(st.integers(0, 40), st.integers(1, 6))
def test_parts_are_the_batch(count: int, workers: int) -> None:
    parts = [Workers(rank, workers).part(torch.arange(count)) for rank in range(workers)]
    assert torch.cat(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "weighted", [{}, {"class_weights": "balanced", "micro_batch_size": 16, "keep_weights": "best", "epochs": 4}]
)
def test_two_processes_give_the_curve_of_one(tmp_path: Path, weighted: Values) -> None:
    settings = SETTINGS | weighted
    alone = train(Request("softmax", tmp_path / "alone", changes=settings), lambda _line: None)

    changes = [f"--set={key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "fitserve_training.cli", "softmax", "--device", "cpu"),
            *("--run-dir", str(tmp_path / "together"), *changes),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "2 workers" in done.stdout
    curves = [
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for folder in (alone, tmp_path / "together")
        for name in ("curve.jsonl", "metrics.jsonl")
    ]
    steps = 3 * -(-1438 // 85)
    assert steps >= 50
    for expected, found in zip(curves[0] + curves[1], curves[2] + curves[3], strict=True):
        for key in expected.keys() - {"examples_per_s"}:
            assert found[key] == pytest.approx(expected[key], rel=1e-4), key


LEAVING = """
import os, sys, torch
from fitserve_training.parallel import joined_workers
with joined_workers(torch.device("cpu")) as workers:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    workers.add_up(torch.zeros(1))
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
assert not [name for name in names if "gloo" in name], names
"""


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "leaving.py")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_half_of_torchruns_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT"), joined_workers(torch.device("cpu")):
        pass
