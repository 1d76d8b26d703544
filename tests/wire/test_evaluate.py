"""Evaluate over the wire: exact sums that merge, every task, and labels that do not fit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import builders
from tests.wire.serving import WAIT_S, refused, served_stub, serving, tensor

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract import sums
from fitserve_contract.scoring import score
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.server import Server

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def evaluate_request(name: str, inputs: Any, labels: Any, datatype: str | None = None) -> pb.EvaluateRequest:
    return pb.EvaluateRequest(
        model=tensor_pb2.ModelSpec(name=name), inputs=[tensor("x", inputs)], labels=tensor("", labels, datatype)
    )


def test_evaluate_merges_to_the_sums_of_the_whole_whatever_the_partition(tmp_path: Path) -> None:
    task = builders.classes_task()
    builders.publish_version(tmp_path, "m", builders.scaled(3.0), task=task)
    random = np.random.default_rng(0)
    rows = random.standard_normal((64, 2)).astype(np.float32)
    rows[5] = rows[5, 0]
    rows[9, 1] = np.nan
    labels = random.integers(0, 2, 64)
    expected = score(task, rows * np.float32(3.0), labels)
    assert isinstance(expected, sums.ClassificationSums)
    with serving(tmp_path) as server, served_stub(server) as stub:

        @settings(max_examples=15, deadline=None)
        @given(cuts=st.lists(st.integers(0, 64), max_size=5))
        def check(cuts: list[int]) -> None:
            edges = sorted([0, 64, *cuts])
            answers = [
                stub.Evaluate(evaluate_request("m", rows[a:b], labels[a:b]), timeout=WAIT_S).classification
                for a, b in pairwise(edges)
            ]
            for field in ("example_count", "correct_count", "tie_count", "nan_count"):
                assert sum(getattr(answer, field) for answer in answers) == getattr(expected, field)
            assert {answer.loss.fraction_bits for answer in answers} == {40}
            assert sum(int(answer.loss.units) for answer in answers) == expected.loss.units

        check()


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (Task(TaskKind.REGRESSION, "y", Scores.VALUES), ROWS * 2 + 1),
        (Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b")), np.array([[0, 1], [1, 1], [0, 0]], bool)),
    ],
)
def test_evaluate_scores_the_other_tasks(tmp_path: Path, task: Task, labels: Any) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled(2.0), task=task)
    with serving(tmp_path) as server, served_stub(server) as stub:
        answer = stub.Evaluate(evaluate_request("m", ROWS, labels), timeout=WAIT_S)
    expected = score(task, ROWS * 2, labels)
    assert answer.WhichOneof("sums") == task.kind.value
    if isinstance(expected, sums.RegressionSums):
        got = answer.regression
        assert (got.example_count, got.value_count, got.squared_error.units) == (3, 6, str(6 * 2**40))
        assert got.absolute_error.units == str(expected.absolute_error.units)
    else:
        assert isinstance(expected, sums.MultiLabelSums)
        got = answer.multi_label
        assert tuple(got.true_positive_counts) == expected.true_positive_counts
        assert (got.exact_match_count, got.loss.units) == (expected.exact_match_count, str(expected.loss.units))


def test_evaluate_scores_the_positions_that_count(tmp_path: Path) -> None:
    task = Task(TaskKind.TOKEN_CLASSIFICATION, "y", Scores.LOGITS, ("O", "B", "I"))
    builders.publish_version(tmp_path, "m", builders.identity("FP32", ("B", "S", 3)), task=task)
    random = np.random.default_rng(0)
    scores, labels = random.standard_normal((6, 5, 3)).astype(np.float32), random.integers(0, 3, (6, 5))
    labels[:, 3:] = -100
    scores[0, 4] = np.nan
    expected = score(task, scores, labels)
    assert isinstance(expected, sums.TokenClassificationSums)
    cases = [
        (labels[:, :4], "labels: expected shape (6, 5), got (6, 4)"),
        (labels[:, 0], "labels: expected shape (6, "),
        (np.where(labels < 0, -1, labels), "labels: expected 0..2, or -100 where a position does not count, got -1"),
    ]
    with serving(tmp_path) as server, served_stub(server) as stub:
        answer = stub.Evaluate(evaluate_request("m", scores, labels), timeout=WAIT_S)
        assert answer.WhichOneof("sums") == task.kind.value
        got = answer.token_classification
        assert (got.example_count, got.exact_match_count) == (6, expected.exact_match_count)
        assert (got.positions.example_count, got.positions.nan_count) == (18, 0)
        assert tuple(got.positions.true_positive_counts) == expected.positions.true_positive_counts
        assert tuple(got.positions.false_negative_counts) == expected.positions.false_negative_counts
        for wrong, text in cases:
            found = refused(stub.Evaluate, evaluate_request("m", scores, wrong))
            assert found[:2] == ("INVALID_ARGUMENT", "INVALID_LABELS"), found
            assert text in found[2]


def test_classes_are_counted_however_many_there_are(tmp_path: Path) -> None:
    count = 300
    task = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, tuple(map(str, range(count))))
    builders.publish_version(tmp_path, "m", builders.identity("FP32", ("B", count)), task=task)
    scores = np.random.default_rng(0).standard_normal((50, count)).astype(np.float32)
    with serving(tmp_path) as server, served_stub(server) as stub:
        got = stub.Evaluate(evaluate_request("m", scores, np.arange(50)), timeout=WAIT_S).classification
    assert not got.confusion_counts
    expected = score(task, scores, np.arange(50))
    assert isinstance(expected, sums.ClassificationSums)
    assert tuple(got.true_positive_counts) == expected.true_positive_counts
    assert sum(got.true_positive_counts) + sum(got.false_negative_counts) == 50


def test_labels_that_do_not_fit_are_refused_before_the_model_runs(tmp_path: Path) -> None:
    builders.publish_version(tmp_path, "m", builders.scaled(), task=builders.classes_task())
    builders.publish_version(tmp_path, "line", builders.scaled(), task=Task(TaskKind.REGRESSION, "y", Scores.VALUES))
    builders.bare_version(tmp_path, "bare", 1, builders.scaled())
    cases = [
        ("m", np.array([0, 1]), None, "labels: expected shape (3,), got (2,)"),
        ("m", np.array([0, 1, 2]), None, "labels: expected 0..1, got 2"),
        ("m", np.array([0, -1, 1]), None, "labels: expected 0..1, got -1"),
        ("m", np.zeros(3, np.float32), None, "labels: expected integers"),
        ("line", np.zeros((3, 2)), None, "labels: expected datatype FP32, got FP64"),
        ("line", np.zeros((3, 1), np.float32), None, "labels: expected shape (3, 2), got (3, 1)"),
        ("line", np.full((3, 2), np.nan, np.float32), None, "labels: expected finite numbers"),
    ]
    with serving(tmp_path) as server, served_stub(server) as stub:
        for name, labels, datatype, text in cases:
            found = refused(stub.Evaluate, evaluate_request(name, ROWS, labels, datatype))
            assert found[:2] == ("INVALID_ARGUMENT", "INVALID_LABELS"), (name, text, found)
            assert text in found[2]
        broken = evaluate_request("m", ROWS, np.zeros(3, np.int64))
        broken.labels.content = b"123"
        assert refused(stub.Evaluate, broken)[1:] == (
            "INVALID_LABELS",
            "labels: expected 24 bytes for INT64 (3,), got 3",
        )
        found = refused(stub.Evaluate, evaluate_request("bare", ROWS, np.zeros(3, np.int64)))
        assert found[:2] == ("FAILED_PRECONDITION", "NO_TASK")
        assert all(version.served.statistics.execution_count == 0 for version in served_versions(server))


def served_versions(server: Server) -> list[Any]:
    return [version for model in server.registry.snapshot() for version in model.versions]
