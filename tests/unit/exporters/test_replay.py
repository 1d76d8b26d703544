"""The probe is drawn from what was verified, and replayed before it is published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fitserve_contract.certificate import read_probe
from fitserve_contract.manifest import read_manifest
from fitserve_exporters.candidate.candidate import Candidate, HeldOut, InputSpec
from fitserve_exporters.errors import NotVerifiedError
from fitserve_exporters.graph.onnx_export import export_onnx
from fitserve_exporters.publishing.publish import publish_candidate
from fitserve_exporters.replay import check_replay, make_probe
from fitserve_exporters.sessions import sessions_here
from fitserve_exporters.verification.sampling import sampled_indices


def candidate(count: int = 400) -> Candidate:
    torch.manual_seed(0)
    rows = np.random.default_rng(0).standard_normal((count, 5)).astype(np.float32)
    inputs = (InputSpec("x", torch.float32, ("batch", 5)),)
    return Candidate(nn.Linear(5, 3), inputs, ("y",), HeldOut({"x": rows}, None, "made up"))


@pytest.mark.parametrize(("count", "expected"), [(400, 32), (5, 5), (1, 1)])
def test_probe_is_spread_over_the_verified_examples(count: int, expected: int) -> None:
    subject = candidate(count)
    verified = subject.held_out.inputs["x"][sampled_indices(subject, 256)]
    probe = make_probe(subject)
    places = [int(np.flatnonzero((verified == row).all(axis=1))[0]) for row in probe.inputs["x"]]
    assert len(places) == expected
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, len(verified) - 1)


def test_a_published_probe_holds_and_one_of_other_weights_does_not(tmp_path: Path) -> None:
    subject = candidate()
    published = publish_candidate(subject, tmp_path, "m")
    probe, manifest = read_probe(published.folder), read_manifest(published.folder)
    assert probe is not None
    assert manifest is not None
    tolerances = manifest.verification["tolerance"]["per_output"]
    check_replay(probe, sessions_here(export_onnx(subject)), tolerances)
    with torch.no_grad():
        subject.module.weight[1, 2] += 0.01  # type: ignore[operator, index]
    with pytest.raises(NotVerifiedError, match=r"replay of the probe on CPUExecutionProvider: output 'y' at batch"):
        check_replay(probe, sessions_here(export_onnx(subject)), tolerances)
