"""Two versions on the same examples: paired counts that merge exactly, and the examples on which they differ."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitserve_contract.pairing import MAX_LISTED, PairedSums, merge_pairs, pair
from fitserve_contract.scoring import score
from fitserve_contract.sums import ClassificationSums, MultiLabelSums, RegressionSums
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array

CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b", "c"))
LABELS = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b", "c"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)
TASKS = [CLASSES, LABELS, VALUES]


def examples(task: Task, count: int, seed: int) -> tuple[Array, Array, Array]:
    generator = np.random.default_rng(seed)
    first, second = generator.random((count, 3)), generator.random((count, 3))
    if task is CLASSES:
        return first, second, generator.integers(0, 3, count)
    return first, second, generator.random((count, 3)) < 0.5 if task is LABELS else generator.random((count, 3))


def exact(losses: tuple[float, ...]) -> Fraction:
    return sum(map(Fraction, losses), Fraction())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TASKS), st.integers(1, 40), st.integers(0, 99), st.randoms())
def test_any_partition_in_any_order_merges_to_the_same_pairs(
    task: Task, count: int, seed: int, randomness: random.Random
) -> None:
    first, second, labels = examples(task, count, seed)
    whole = pair(task, first, second, labels, np.arange(count))
    order = list(range(count))
    randomness.shuffle(order)
    cuts = sorted(randomness.randint(0, count) for _ in range(5))
    pieces = [np.array(order[start:end], int) for start, end in zip([0, *cuts], [*cuts, count], strict=True)]
    merged = merge_pairs([pair(task, first[p], second[p], labels[p], p) for p in pieces])
    counts = ("example_count", "both_count", "first_only_count", "second_only_count", "neither_count")
    for field in (*counts, "difference_count", "difference_indices"):
        assert getattr(merged, field) == getattr(whole, field)
    assert exact(merged.first_losses) == exact(whole.first_losses)
    assert exact(merged.second_losses) == exact(whole.second_losses)
    assert sorted(zip(merged.first_losses, merged.second_losses, strict=True)) == sorted(
        zip(whole.first_losses, whole.second_losses, strict=True)
    )


@pytest.mark.parametrize("task", TASKS)
def test_pairs_agree_with_the_sums_of_each(task: Task) -> None:
    first, second, labels = examples(task, 200, 3)
    paired = pair(task, first, second, labels, np.arange(200))
    one, other = score(task, first, labels), score(task, second, labels)
    right = (paired.both_count + paired.first_only_count, paired.both_count + paired.second_only_count)
    if isinstance(one, ClassificationSums) and isinstance(other, ClassificationSums):
        assert right == (one.correct_count, other.correct_count)
        assert paired.difference_count == int((first.argmax(1) != second.argmax(1)).sum())
    elif isinstance(one, MultiLabelSums) and isinstance(other, MultiLabelSums):
        assert right == (one.exact_match_count, other.exact_match_count)
        assert exact(paired.first_losses) == Fraction(one.loss.units, 2**40)
    elif isinstance(one, RegressionSums):
        assert (right, paired.neither_count, paired.difference_count) == ((0, 0), 200, 200)
        assert float(exact(paired.first_losses)) / 200 == pytest.approx(one.mse)


def test_nan_is_wrong_and_has_no_loss() -> None:
    bad, good = np.array([[np.nan, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    classes = pair(CLASSES, bad, good, np.array([0, 0]), np.array([7, 9]))
    assert (classes.second_only_count, classes.both_count, classes.difference_indices) == (1, 1, (7,))
    labels = pair(LABELS, bad, good, good.astype(bool), np.array([7, 9]))
    assert (labels.second_only_count, labels.both_count, len(labels.first_losses)) == (1, 1, 1)
    values = pair(VALUES, bad, good, good, np.array([7, 9]))
    assert (values.first_losses, values.second_losses, values.difference_indices) == ((0.0,), (0.0,), (7,))
    assert pair(VALUES, bad, bad, good, np.array([7, 9])).difference_count == 0


def test_list_of_differences_is_bounded_and_keeps_the_lowest() -> None:
    first, second = np.zeros((800, 1)), np.ones((800, 1))
    parts = [pair(VALUES, first, second, first, np.arange(800) + start) for start in (800, 0)]
    merged = merge_pairs(parts)
    assert (merged.difference_count, merged.difference_indices) == (1600, tuple(range(MAX_LISTED)))
    assert merge_pairs([]) == PairedSums()


def test_outputs_and_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: expected 0\.\.2, got 3"):
        pair(CLASSES, np.zeros((1, 3)), np.zeros((1, 3)), np.array([3]), np.array([0]))
    with pytest.raises(ValueError, match=r"output 'y': expected shape \(B, 3\) .*, got \(1, 2\)"):
        pair(CLASSES, np.zeros((1, 3)), np.zeros((1, 2)), np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match=r"labels: expected shape \(1, 3\), got \(1, 2\)"):
        pair(VALUES, np.zeros((1, 2)), np.zeros((1, 3)), np.zeros((1, 2)), np.array([0]))
