"""Decisions, ties and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.scoring import score
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_exporters.verification.answers import (
    decisions,
    is_different,
    listed,
    margins,
    metrics_of,
    wilson_interval,
)

CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b", "c"))
LABELS = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b"))
TAGS = Task(TaskKind.TOKEN_CLASSIFICATION, "y", Scores.LOGITS, ("O", "B", "I"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)


def test_classes_are_decided_by_the_largest_score() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [3.0, 3.0, 1.0]])
    assert decisions(CLASSES, scores).tolist() == [1, 0]
    assert margins(CLASSES, scores) == pytest.approx([0.5, 0.0])


def test_labels_are_decided_by_the_threshold() -> None:
    scores = np.array([[0.5, 0.4], [0.9, 0.51]])
    assert decisions(LABELS, scores).tolist() == [[True, False], [True, True]]
    assert margins(LABELS, scores) == pytest.approx([0.0, 0.01])


def test_each_position_is_decided_by_itself() -> None:
    scores = np.array([[[0.0, 1.0, 0.5], [3.0, 3.0, 1.0]]])
    assert decisions(TAGS, scores).tolist() == [[1, 0]]
    assert margins(TAGS, scores).tolist() == [[0.5, 0.0]]
    assert is_different(TAGS, scores, np.array([[[0.0, 1.0, 2.0], [4.0, 3.0, 1.0]]])).tolist() == [[True, False]]


def test_one_class_alone_is_never_in_doubt() -> None:
    assert margins(CLASSES, np.zeros((2, 1))).tolist() == [np.inf, np.inf]


def test_examples_that_decide_differently() -> None:
    left, right = np.array([[0.6, 0.1], [0.6, 0.1]]), np.array([[0.6, 0.2], [0.6, 0.7]])
    assert is_different(LABELS, left, right).tolist() == [False, True]
    assert is_different(CLASSES, left, right).tolist() == [False, True]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8040, 10000, 0.7961, 0.8117)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="Wilson interval"):
        wilson_interval(successes, trials)


def test_metrics_of_each_task() -> None:
    classes = metrics_of(score(CLASSES, np.eye(3), np.array([0, 1, 0])))
    assert (classes["correct_count"], classes["example_count"]) == (2, 3)
    assert classes["accuracy_interval_95"] == list(wilson_interval(2, 3))
    assert (classes["recalls"], classes["balanced_accuracy"]) == ([0.5, 1.0, None], 0.75)
    assert classes["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    tags = metrics_of(score(TAGS, np.eye(3)[np.array([[0, 1, 2]])], np.array([[0, 2, -100]])))
    assert (tags["accuracy"], tags["position_count"], tags["correct_position_count"]) == (0.5, 2, 1)
    assert (tags["exact_match"], tags["example_count"], tags["recalls"]) == (0.0, 1, [1.0, None, 0.0])
    labels = metrics_of(score(LABELS, np.array([[0.9, 0.1]]), np.array([[True, False]])))
    assert (labels["exact_match"], labels["micro_f1"]) == (1.0, 1.0)
    values = metrics_of(score(VALUES, np.array([[1.0], [2.0]]), np.array([[1.0], [1.0]])))
    assert (values["mse"], values["mae"], values["r_squared"]) == (0.5, 0.5, None)


def test_listing_of_many_indices_is_short() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(1000)).endswith("8, 9, … (1000 in all)")
