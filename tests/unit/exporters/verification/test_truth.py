"""What torch answers is computed once for all files of an export, and float64 only where it decides."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec, Tolerance
from fitserve_exporters.graph.onnx_export import export_onnx
from fitserve_exporters.sessions import CPU, OrtSession
from fitserve_exporters.variants_row_quantization import quantize_rows
from fitserve_exporters.verification.answers import is_different, margins
from fitserve_exporters.verification.truth import Truth
from fitserve_exporters.verification.verify import verify

KINDS = {
    TaskKind.CLASSIFICATION: Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b", "c")),
    TaskKind.MULTI_LABEL: Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b", "c")),
}


def candidate(kind: TaskKind) -> Candidate:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3), nn.Sigmoid())
    x = np.random.default_rng(0).standard_normal((600, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 2, (600, 3)).astype(bool)
    truth = labels if kind is TaskKind.MULTI_LABEL else labels.argmax(axis=1)
    spec = InputSpec("x", torch.float32, ("batch", 5))
    return Candidate(module, (spec,), ("y",), HeldOut({"x": x}, truth, "made up"), KINDS[kind])


@cache
def files(kind: TaskKind) -> tuple[bytes, bytes]:
    fp32 = export_onnx(candidate(kind))
    return fp32, quantize_rows(fp32)


class Counting(nn.Module):
    """Counts the rows that pass a module, by dtype; what is counted is shared by its copies."""

    def __init__(self, inner: nn.Module, rows: dict[torch.dtype, int]) -> None:
        super().__init__()
        self.inner = inner

        def add(dtype: torch.dtype, count: int) -> None:
            rows[dtype] = rows.get(dtype, 0) + count

        self.add = add  # a function is not copied with the module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.add(x.dtype, len(x))
        answer: torch.Tensor = self.inner(x)
        return answer


def test_a_second_file_costs_no_answer_that_is_known() -> None:
    subject, rows = candidate(TaskKind.CLASSIFICATION), dict[torch.dtype, int]()
    counted = replace(subject, module=Counting(subject.module, rows))
    sessions = [OrtSession(content, CPU) for content in files(TaskKind.CLASSIFICATION)]
    truth = Truth(counted)
    first = verify(counted, [sessions[0]], truth)
    before = dict(rows)
    assert before[torch.float32] >= 600
    assert before[torch.float64] < 600

    wide = replace(counted, tolerance=Tolerance(atol=0.05))
    second = verify(wide, [sessions[1]], truth)
    agreement = second.providers[0].agreement
    assert agreement is not None
    assert len(agreement.ties) > 50
    assert rows[torch.float32] == before[torch.float32]
    assert rows[torch.float64] - before[torch.float64] < 50
    again = dict(rows)
    assert verify(wide, [sessions[1]], truth).providers[0] == second.providers[0]
    assert rows == again
    assert first.torch_metrics == second.torch_metrics == verify(counted, [sessions[0]]).torch_metrics


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_those_of_float64_at_any_tolerance(kind: TaskKind) -> None:
    subject = candidate(kind)
    session, truth = OrtSession(files(kind)[1], CPU), Truth(subject)
    every = np.arange(600)
    with torch.inference_mode():
        exact = subject.module.double()(torch.from_numpy(subject.held_out.inputs["x"]).double()).numpy()
    subject.module.float()
    eager = truth.scores
    parts = [{"x": subject.held_out.inputs["x"][start : start + 256]} for start in range(0, 600, 256)]
    served = np.concatenate([session.run(part)["y"] for part in parts])

    @settings(max_examples=25, deadline=None)
    # A hair above the margin of some example, torch's own rounding would decide.
    @given(st.floats(1e-5, 1.0) | st.sampled_from((margins(KINDS[kind], exact) * (1 + 1e-12)).tolist()))
    def holds(atol: float) -> None:
        record = verify(replace(subject, tolerance=Tolerance(atol=atol)), [session], truth)
        agreement = record.providers[0].agreement
        assert agreement is not None
        is_tie = margins(KINDS[kind], exact) <= record.tolerances["y"]
        differs = is_different(KINDS[kind], served, eager)
        assert agreement.ties == tuple(every[is_tie])
        assert agreement.tie_differences == tuple(every[is_tie & differs])
        assert agreement.differences == tuple(every[~is_tie & differs])

    holds()
