"""The server's answers beside torch's: equal to the count, ties listed, differences refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.builders import classes_task, linear, publish_version

from fitserve_benchmarks.programs import StepFailedError
from fitserve_benchmarks.served_answers import BATCH_SIZE, compare_answers, find_ties
from fitserve_client import Client
from fitserve_service.server import running_server
from fitserve_service.settings import ServerSettings


def module_of(content: bytes) -> torch.nn.Linear:
    """The module x (B, 2) -> y (B, 2) with the weights of the file."""
    module = torch.nn.Linear(2, 2, bias=False)
    weights = numpy_helper.to_array(onnx.load_from_string(content).graph.initializer[0])
    module.weight.data = torch.from_numpy(weights.T.copy())
    return module.eval().requires_grad_(False)


@contextmanager
def client_of(root: Path) -> Iterator[Client]:
    """Serves a repository and connects to it."""
    settings = ServerSettings(root, port=0, metrics_port=None, log_level="error")
    with running_server(settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        yield client


def test_evaluate_counts_what_torch_counts(tmp_path: Path) -> None:
    content = linear(2, 2)
    publish_version(tmp_path, "m", content, task=classes_task("y", 2))
    generator = np.random.default_rng(0)
    inputs = {"x": generator.standard_normal((BATCH_SIZE + 37, 2)).astype(np.float32)}
    labels = generator.integers(0, 2, len(inputs["x"]))
    with client_of(tmp_path) as client:
        answers = compare_answers(client, "m", 1, module_of(content), inputs, labels)
    assert answers.example_count == BATCH_SIZE + 37
    assert answers.served_correct_count == answers.torch_correct_count
    assert answers.interval[0] < answers.accuracy < answers.interval[1]
    assert answers.max_abs_diff < 1e-6
    assert answers.ties == ()


def test_another_modules_answers_are_refused(tmp_path: Path) -> None:
    publish_version(tmp_path, "m", linear(2, 2, seed=1), task=classes_task("y", 2))
    inputs = {"x": np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)}
    with client_of(tmp_path) as client, pytest.raises(StepFailedError, match="more than a tie"):
        compare_answers(client, "m", 1, module_of(linear(2, 2, seed=2)), inputs, np.zeros(50, np.int64))


def test_level_scores_are_listed_and_clear_ones_refused() -> None:
    own = np.array([[1.0, 0.0], [2.0, 2.0 - 1e-6], [0.0, 1.0]])
    served = np.array([[1.0, 0.0], [2.0 - 1e-6, 2.0], [0.0, 1.0]])
    (tie,) = find_ties(own, served, tolerance=1e-5)
    assert (tie.index, tie.classes) == (1, (0, 1))
    assert tie.gap == pytest.approx(1e-6)
    with pytest.raises(StepFailedError, match="example 1: expected class 0 as torch has it, the server answered 1"):
        find_ties(own, served, tolerance=1e-7)


def test_scores_that_are_no_numbers_are_no_tie() -> None:
    with pytest.raises(StepFailedError, match="example 0"):
        find_ties(np.array([[np.nan, 0.0]]), np.array([[0.0, 1.0]]), tolerance=1.0e-3)
