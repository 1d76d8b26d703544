"""Latency that an export measures: for each verified batch size, and honest about few runs."""

import numpy as np
import torch
from torch import nn

from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec
from fitserve_exporters.graph.onnx_export import export_onnx
from fitserve_exporters.latency import MAX_RUNS, measure_latency
from fitserve_exporters.sessions import CPU, OrtSession


def candidate(example_count: int) -> Candidate:
    held_out = HeldOut({"x": np.zeros((example_count, 3), np.float32)}, None, "zeros")
    return Candidate(nn.Linear(3, 2), (InputSpec("x", torch.float32, ("batch", 3)),), ("y",), held_out)


def test_every_verified_batch_size_is_timed() -> None:
    subject = candidate(50)
    rows = measure_latency(subject, OrtSession(export_onnx(subject), CPU))
    assert [row["batch_size"] for row in rows] == [1, 2, 7, 50]
    for row in rows:
        assert 1 <= row["run_count"] <= MAX_RUNS
        assert row["p50_ms"] > 0
        assert row["p99_ms"] is None or row["p99_ms"] >= row["p50_ms"]
        assert (row["p99_ms"] is None) == (row["run_count"] < 100)
