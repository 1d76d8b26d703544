"""One of n classes per position: padding counts for nothing, and every figure is that of the flattened positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract.pairing import pair
from fitserve_contract.scoring import check_labels, score
from fitserve_contract.sums import Sums, TokenClassificationSums, merge
from fitserve_contract.tasks import IGNORED_LABEL, Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array

TAGS = Task(TaskKind.TOKEN_CLASSIFICATION, "logits", Scores.LOGITS, ("O", "B-PER", "I-PER"))
FLAT = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, TAGS.class_names)


def examples(seed: int, count: int, length: int) -> tuple[Array, Array]:
    stream = np.random.default_rng(seed)
    scores = stream.standard_normal((count, length, 3)).astype(np.float32)
    labels = stream.integers(0, 3, (count, length))
    labels[np.arange(length) >= stream.integers(0, length + 1, (count, 1))] = IGNORED_LABEL
    return scores, labels


def scored(scores: Array, labels: Array) -> TokenClassificationSums:
    sums = score(TAGS, scores, labels)
    assert isinstance(sums, TokenClassificationSums)
    return sums


sizes = st.tuples(st.integers(0, 999), st.integers(1, 9), st.integers(1, 7))


@settings(max_examples=60)
@given(sizes)
def test_figures_are_those_of_the_positions_that_count(size: tuple[int, int, int]) -> None:
    scores, labels = examples(*size)
    sums, is_counted = scored(scores, labels), labels != IGNORED_LABEL
    assert sums.positions == score(FLAT, scores[is_counted], labels[is_counted])
    is_right = (scores.argmax(2) == labels) | ~is_counted
    assert (sums.example_count, sums.exact_match_count) == (len(labels), is_right.all(axis=1).sum())


@given(sizes, st.integers(1, 4))
def test_padding_changes_nothing_whatever_is_answered_there(size: tuple[int, int, int], more: int) -> None:
    scores, labels = examples(*size)
    beyond = np.full((len(labels), more), IGNORED_LABEL)
    noise = np.full((len(labels), more, 3), np.nan, np.float32)
    wide = np.concatenate([scores, noise], axis=1), np.concatenate([labels, beyond], axis=1)
    assert scored(*wide) == scored(scores, labels)
    other = np.concatenate([scores, np.zeros_like(noise)], axis=1)
    paired = pair(TAGS, wide[0], other, wide[1], np.arange(len(labels)))
    assert paired.difference_count == 0


@given(sizes, st.integers(1, 5))
def test_parts_merge_to_the_whole(size: tuple[int, int, int], part_count: int) -> None:
    scores, labels = examples(*size)
    parts: list[Sums] = [score(TAGS, scores[rows], labels[rows]) for rows in np.array_split(range(size[1]), part_count)]
    assert merge(parts[::-1]) == score(TAGS, scores, labels)


def test_nothing_that_counts_is_no_accuracy() -> None:
    sums = scored(np.zeros((2, 3, 3)), np.full((2, 3), IGNORED_LABEL))
    assert np.isnan(sums.positions.accuracy)
    assert sums.exact_match == 1.0


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_no_examples_and_no_positions_are_scored(shape: tuple[int, int]) -> None:
    scores, labels = np.zeros((*shape, 3)), np.zeros(shape, np.int64)
    sums = scored(scores, labels)
    assert (sums.example_count, sums.positions.example_count) == (shape[0], 0)
    assert pair(TAGS, scores, scores, labels, np.arange(shape[0])).both_count == shape[0]


def test_two_versions_are_right_by_whole_examples() -> None:
    labels = np.array([[1, 2, IGNORED_LABEL], [0, 0, 0]])
    first, second = (np.eye(3)[np.array(classes)] for classes in ([[1, 2, 0], [0, 1, 0]], [[1, 0, 2], [0, 0, 0]]))
    paired = pair(TAGS, first, second, labels, np.arange(2))
    assert (paired.first_only_count, paired.second_only_count, paired.difference_indices) == (1, 1, (0, 1))
    assert paired.first_losses == ()


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        (np.zeros((2, 4)), (2, 4, 3), "labels: expected integers, got float64"),
        (
            np.zeros((2, 4), int),
            (2, 3, 4),
            r"expected shape \(B, S, 3\) .*got \(2, 3, 4\); move the classes to the last",
        ),
        (np.zeros((2, 4), int), (2, 4, 5), r"got \(2, 4, 5\); give one class name per class"),
        (np.zeros(2, int), (2, 3), r"got \(2, 3\); such an output is scored by the task classification"),
        (np.zeros((2, 5), int), (2, 4, 3), r"labels: expected shape \(2, 4\), got \(2, 5\)"),
        (np.array([[0, -1]]), (1, 2, 3), r"labels: expected 0\.\.2, or -100 where a position does not count, got -1"),
        (np.array([[0, 3]]), (1, 2, 3), r"labels: expected 0\.\.2, .*got 3"),
    ],
)
def test_labels_and_outputs_that_do_not_fit_are_refused(labels: Array, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_labels(TAGS, labels, shape)


def test_the_ignored_label_is_for_positions_alone() -> None:
    with pytest.raises(ValueError, match=r"labels: expected 0\.\.2, got -100"):
        check_labels(FLAT, np.array([IGNORED_LABEL]), (1, 3))


def test_a_kind_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match=r"task\.kind: expected one of .*got 'ranking'; update fitserve"):
        Task.from_json({**TAGS.to_json(), "kind": "ranking"})
    assert Task.from_json(TAGS.to_json()) == TAGS
