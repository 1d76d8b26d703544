"""Scores against labels: right, and exact whatever the order and the partition."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from fitserve_contract.scoring import score
from fitserve_contract.sums import (
    FRACTION_BITS,
    ClassificationSums,
    ExactSum,
    MultiLabelSums,
    RegressionSums,
    Sums,
    merge,
)
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_contract.tensor_bytes import Array

CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b", "c"))
SHARES = Task(TaskKind.CLASSIFICATION, "y", Scores.PROBABILITIES, ("a", "b", "c"))
LABELS = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b", "c"))
VALUES = Task(TaskKind.REGRESSION, "y", Scores.VALUES)


def examples(task: Task, count: int, seed: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    if task.kind is TaskKind.CLASSIFICATION:
        return generator.standard_normal((count, 3)).astype(np.float32), generator.integers(0, 3, count)
    if task.kind is TaskKind.MULTI_LABEL:
        return generator.random((count, 3), np.float32), generator.random((count, 3)) < 0.4
    return generator.standard_normal((count, 2)), generator.standard_normal((count, 2))


@settings(max_examples=60)
@given(st.sampled_from([CLASSES, LABELS, VALUES]), st.integers(1, 60), st.integers(0, 99), st.randoms())
def test_any_partition_in_any_order_merges_to_the_same_total(
    task: Task, count: int, seed: int, randomness: random.Random
) -> None:
    scores, labels = examples(task, count, seed)
    whole = score(task, scores, labels)
    cuts = sorted(randomness.randint(0, count) for _ in range(randomness.randint(0, 7)))
    order = list(range(count))
    randomness.shuffle(order)
    pieces = [order[start:end] for start, end in zip([0, *cuts], [*cuts, count], strict=True)]
    parts: list[Sums] = [score(task, scores[piece], labels[piece]) for piece in pieces]
    randomness.shuffle(parts)
    assert merge(parts) == whole


@pytest.mark.parametrize("task", [CLASSES, LABELS, VALUES])
@pytest.mark.parametrize("part_count", [1, 7, 1000])
def test_one_seven_and_a_thousand_parts_are_bit_identical(task: Task, part_count: int) -> None:
    scores, labels = examples(task, 5000, 0)
    pieces = np.array_split(np.random.default_rng(part_count).permutation(5000), part_count)
    assert merge([score(task, scores[piece], labels[piece]) for piece in pieces]) == score(task, scores, labels)


@given(hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-1e12, 1e12)))
def test_exact_sum_is_within_half_a_unit_per_addend_and_free_of_order(addends: Array) -> None:
    total = ExactSum.of(addends)
    assert total == ExactSum.of(addends[::-1])
    exact = sum((Fraction(float(value)) for value in addends), Fraction(0))
    assert abs(Fraction(total.units, 2**FRACTION_BITS) - exact) <= Fraction(len(addends), 2 ** (FRACTION_BITS + 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_exact_sum_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ExactSum.of(np.array([1.0, bad]))


def test_units_of_exact_sums_must_match() -> None:
    with pytest.raises(ValueError, match=r"unit of 2\^-40, got 2\^-20"):
        ExactSum(1) + ExactSum(1, 20)


def test_classes_are_counted_and_their_cross_entropy_summed() -> None:
    scores, labels = examples(CLASSES, 500, 1)
    sums = score(CLASSES, scores, labels)
    assert isinstance(sums, ClassificationSums)
    assert sums.correct_count == int((scores.argmax(1) == labels).sum())
    wide = scores.astype(np.float64)
    shares = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    assert sums.mean_loss == pytest.approx(metrics.log_loss(labels, shares, labels=[0, 1, 2]), rel=1e-9)
    shares_sums = score(SHARES, shares, labels)
    assert isinstance(shares_sums, ClassificationSums)
    assert shares_sums.mean_loss == pytest.approx(sums.mean_loss, rel=1e-9)


def test_equal_scores_take_the_lowest_class_and_are_counted_as_ties() -> None:
    sums = score(CLASSES, np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), np.array([0, 2]))
    assert isinstance(sums, ClassificationSums)
    assert (sums.correct_count, sums.tie_count, sums.example_count) == (1, 2, 2)


def test_classes_have_the_confusion_and_the_top_k_of_scikit_learn() -> None:
    task = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, tuple("abcdefgh"))
    generator = np.random.default_rng(7)
    scores, labels = generator.standard_normal((400, 8)), generator.integers(0, 8, 400)
    sums = score(task, scores, labels)
    assert isinstance(sums, ClassificationSums)
    assert np.array_equal(sums.confusion, metrics.confusion_matrix(labels, scores.argmax(1), labels=range(8)))
    assert sums.top_counts == tuple(
        metrics.top_k_accuracy_score(labels, scores, k=k, normalize=False, labels=range(8)) for k in range(1, 6)
    )
    assert sums.top_counts[0] == sums.correct_count == sum(sums.bin_correct_counts)
    assert sum(sums.bin_counts) == 400


def test_confidence_is_binned_and_its_gap_to_the_accuracy_is_the_calibration_error() -> None:
    shares = np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]])
    sums = score(SHARES, shares, np.array([0, 1, 0, 1]))
    assert isinstance(sums, ClassificationSums)
    # 0.9 is in (13/15, 14/15], 0.6 is exactly 9/15 and belongs below it, 0.8 is 12/15.
    assert {index: count for index, count in enumerate(sums.bin_counts) if count} == {8: 1, 11: 1, 13: 2}
    assert sums.calibration_error == pytest.approx((abs(1 - 0.6) + abs(1 - 0.8) + abs(1 - 1.8)) / 4)
    logits_sums = score(CLASSES, np.log(shares + 1e-300), np.array([0, 1, 0, 1]))
    assert isinstance(logits_sums, ClassificationSums)
    assert logits_sums.calibration_error == pytest.approx(sums.calibration_error)


def test_confidence_sums_of_each_bin_are_exact() -> None:
    shares = np.random.default_rng(8).dirichlet(np.full(3, 0.5), 3000)
    sums = score(SHARES, shares, np.zeros(3000, np.int64))
    assert isinstance(sums, ClassificationSums)
    bins = np.ceil(shares.max(axis=1) * 15).astype(int) - 1
    assert sums.bin_confidences == tuple(ExactSum.of(shares.max(axis=1)[bins == index]) for index in range(15))
    assert sums.bin_counts == tuple((bins == index).sum() for index in range(15))


def test_equal_scores_rank_by_index_and_many_classes_have_no_confusion_matrix() -> None:
    task = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, tuple(str(index) for index in range(129)))
    sums = score(task, np.zeros((6, 129)), np.arange(6))
    assert isinstance(sums, ClassificationSums)
    assert sums.top_counts == (1, 2, 3, 4, 5)
    assert (sums.confusion_counts, sums.confusion) == ((), ())


def test_nan_is_wrong_and_counted_and_infinite_logits_have_a_finite_loss() -> None:
    scores = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [np.inf, 0, 0], [0, -np.inf, 0]])
    sums = score(CLASSES, scores, np.array([0, 0, 1, 1]))
    assert isinstance(sums, ClassificationSums)
    assert (sums.example_count, sums.correct_count, sums.nan_count) == (4, 1, 1)
    assert sum(sums.confusion_counts) == sum(sums.bin_counts) == 3
    assert np.isfinite(sums.calibration_error)
    assert np.isfinite(sums.mean_loss)


def test_labels_have_the_figures_of_scikit_learn() -> None:
    scores, truth = examples(LABELS, 400, 2)
    sums = score(LABELS, scores, truth)
    assert isinstance(sums, MultiLabelSums)
    predicted = scores >= 0.5
    assert sums.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0))
    assert sums.micro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="micro", zero_division=0))
    assert sums.exact_match == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert sums.precisions == pytest.approx(metrics.precision_score(truth, predicted, average=None, zero_division=0))
    assert sums.recalls == pytest.approx(metrics.recall_score(truth, predicted, average=None, zero_division=0))


def test_values_have_the_figures_of_scikit_learn() -> None:
    values, truth = examples(VALUES, 400, 3)
    sums = score(VALUES, values, truth)
    assert isinstance(sums, RegressionSums)
    assert sums.mse == pytest.approx(metrics.mean_squared_error(truth, values), rel=1e-9)
    assert sums.mae == pytest.approx(metrics.mean_absolute_error(truth, values), rel=1e-9)
    assert sums.r_squared == pytest.approx(metrics.r2_score(truth.ravel(), values.ravel()), rel=1e-9)


@pytest.mark.parametrize(
    ("task", "scores", "labels", "message"),
    [
        (CLASSES, np.zeros((2, 3)), np.array([0, 3]), r"expected 0\.\.2, got 3"),
        (CLASSES, np.zeros((2, 3)), np.array([-1, 0]), r"expected 0\.\.2, got -1"),
        (CLASSES, np.zeros((2, 3)), np.array([0]), r"expected shape \(2,\), got \(1,\)"),
        (CLASSES, np.zeros((2, 3)), np.array([0.0, 1.0]), "expected integers, got float64"),
        (CLASSES, np.zeros(2), np.array([0, 1]), "expected shape"),
        (LABELS, np.zeros((1, 3)), np.array([[0, 1, 2]]), r"expected 0\.\.1, got 2"),
        (VALUES, np.zeros((1, 3)), np.array([[0, 1, np.nan]]), "finite"),
        (VALUES, np.zeros((1, 3)), np.zeros(3), r"expected shape \(1, 3\), got \(3,\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(task: Task, scores: Array, labels: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(task, scores, labels)


def test_sums_of_different_tasks_do_not_merge() -> None:
    with pytest.raises(TypeError, match="expected ClassificationSums, got RegressionSums"):
        merge([ClassificationSums(), RegressionSums()])
    with pytest.raises(ValueError, match="expected at least one part"):
        merge([])
    with pytest.raises(ValueError, match="expected 1 counts, got 2"):
        merge([MultiLabelSums(1, 0, (1,), (0,), (0,)), MultiLabelSums(1, 0, (1, 1), (0, 0), (0, 0))])


@pytest.mark.parametrize("task", [CLASSES, LABELS, VALUES])
def test_no_examples_have_sums_and_no_figures(task: Task) -> None:
    scores, labels = examples(task, 0, 0)
    empty = score(task, scores, labels)
    assert empty.example_count == 0
    full = score(task, *examples(task, 5, 0))
    assert merge([full, empty]) == full
