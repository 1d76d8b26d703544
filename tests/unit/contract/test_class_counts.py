"""Figures per class from exact counts: those of scikit-learn, merged in any order, bounded for many classes."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from fitserve_contract.class_counts import ClassCounts
from fitserve_contract.scoring import score
from fitserve_contract.sums import ClassificationSums, merge
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array

COUNT = 5
CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, tuple("abcde"))

answers = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1)), min_size=1, max_size=40)


def one_hot(predicted: Array) -> Array:
    return np.eye(COUNT)[predicted]


def counted(scores: Array, truth: Array) -> ClassCounts:
    sums = score(CLASSES, scores, truth)
    assert isinstance(sums, ClassificationSums)
    assert sums.per_class is not None
    return sums.per_class


@settings(max_examples=200)
@given(answers)
def test_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    counts = counted(one_hot(predicted), truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and never true
        balanced = metrics.balanced_accuracy_score(truth, predicted)
    every = metrics.precision_recall_fscore_support(truth, predicted, labels=range(COUNT), zero_division=np.nan)

    assert counts.balanced_accuracy == pytest.approx(balanced, rel=1e-12)
    assert counts.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0))
    np.testing.assert_allclose(counts.precisions, every[0], equal_nan=True)
    np.testing.assert_allclose(counts.recalls, every[1], equal_nan=True)
    np.testing.assert_allclose(counts.f1_scores, every[2], equal_nan=True)
    assert list(counts.example_counts) == every[3].tolist()


@given(answers, st.integers(0, 40))
def test_an_example_with_nan_is_missed_and_answers_no_class(pairs: list[tuple[int, int]], place: int) -> None:
    truth, predicted = np.array(pairs).T
    scores, place = one_hot(predicted), place % len(pairs)
    scores[place, 0] = np.nan
    counts = counted(scores, truth)

    said = np.where(np.arange(len(pairs)) == place, -1, predicted)
    recalls = metrics.recall_score(truth, said, labels=range(COUNT), average=None, zero_division=np.nan)
    np.testing.assert_allclose(counts.recalls, recalls, equal_nan=True)
    assert sum(counts.example_counts) == len(pairs)
    assert sum(counts.predicted_counts) == len(pairs) - 1


def test_ten_thousand_classes_take_three_numbers_each() -> None:
    count = 10_000
    task = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, tuple(map(str, range(count))))
    stream = np.random.default_rng(0)
    scores, truth = stream.standard_normal((64, count)).astype(np.float32), stream.integers(0, count, 64)
    scores[np.arange(32), truth[:32]] = 100.0
    parts = [score(task, scores[rows], truth[rows]) for rows in np.array_split(np.arange(64), 3)]
    merged = merge(parts)

    assert isinstance(merged, ClassificationSums)
    assert merged == score(task, scores, truth)
    assert merged.confusion_counts == ()
    assert merged.per_class is not None
    assert len(merged.true_positive_counts) == len(merged.false_negative_counts) == count
    predicted = scores.argmax(1)
    assert merged.per_class.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


def test_sums_that_were_partly_counted_by_older_servers_give_no_figures() -> None:
    new = score(CLASSES, one_hot(np.array([0, 1])), np.array([0, 2]))
    older = ClassificationSums(example_count=2, correct_count=1)
    merged = merge([new, older])
    assert isinstance(merged, ClassificationSums)
    assert merged.accuracy == 0.5
    assert merged.per_class is None
    assert older.per_class is None


def test_without_examples_there_are_no_figures() -> None:
    counts = ClassCounts.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
    assert math.isnan(counts.balanced_accuracy)
    assert math.isnan(counts.macro_f1)
