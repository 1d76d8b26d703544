"""What is concluded from pairs: against scipy and published formulas, and the same whatever the partition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fitserve_client.comparison import Comparison, mcnemar, merged_comparison, paired_bootstrap
from fitserve_client.evaluation import Evaluation, class_figures
from fitserve_contract.pairing import pair
from fitserve_contract.scoring import score
from fitserve_contract.sums import ClassificationSums
from fitserve_contract.tasks import Scores, Task, TaskKind

CLASSES = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b", "c"))
LABELS = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b", "c"))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    found = mcnemar(first, second)
    count = first + second
    expected = stats.binomtest(first, count).pvalue if count else 1.0
    assert found.exact_p == pytest.approx(expected, rel=1e-9)
    assert found.mid_p <= found.exact_p
    if first != second:
        # Fagerland et al. (2013): the exact p-value less the probability of the observed outcome.
        assert found.mid_p == pytest.approx(expected - stats.binom.pmf(first, count, 0.5), rel=1e-6, abs=1e-12)
    else:
        assert found.mid_p == pytest.approx(1.0)


def test_mcnemar_holds_for_counts_far_beyond_a_data_set() -> None:
    found = mcnemar(50_000, 51_000)
    assert found.exact_p == pytest.approx(stats.binomtest(50_000, 101_000).pvalue, rel=1e-6)


@pytest.mark.slow
def test_bootstrap_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        first = random.exponential(size=80)
        found = paired_bootstrap(tuple(first), tuple(first + random.normal(0.1, 0.3, 80)))
        covered += found.low <= 0.1 <= found.high
        assert found.low <= found.difference <= found.high
    assert 50 <= covered <= 60


@pytest.mark.slow
@given(st.permutations(range(30)))
def test_bootstrap_does_not_depend_on_the_order(order: list[int]) -> None:
    random = np.random.default_rng(1)
    first, second = random.random(30), random.random(30)
    assert paired_bootstrap(first[order], second[order]) == paired_bootstrap(first, second)


@pytest.mark.parametrize("task", [CLASSES, LABELS])
@pytest.mark.parametrize("part_count", [1, 7, 1000])
def test_one_seven_and_a_thousand_parts_are_bit_identical(task: Task, part_count: int) -> None:
    random = np.random.default_rng(2)
    first, second = random.random((2, 2000, 3))
    labels = random.integers(0, 3, 2000) if task is CLASSES else random.random((2000, 3)) < 0.5

    def compared(part: np.ndarray) -> Comparison:
        one, other = (
            Evaluation("m", number, score(task, scores[part], labels[part]), 1)
            for number, scores in ((1, first), (2, second))
        )
        return Comparison(one, other, pair(task, first[part], second[part], labels[part], part))

    whole = compared(np.arange(2000))
    merged = merged_comparison([compared(part) for part in np.array_split(random.permutation(2000), part_count)])
    assert (merged.first.sums, merged.second.sums) == (whole.first.sums, whole.second.sums)
    assert (merged.mcnemar, merged.bootstrap, merged.share_difference) == (
        *(whole.mcnemar, whole.bootstrap, whole.share_difference),
    )
    assert merged.paired.difference_indices == whole.paired.difference_indices
    assert merged.first.batch_count == part_count


def test_share_difference_is_its_estimate_within_its_interval() -> None:
    random = np.random.default_rng(3)
    first, second = random.random((2, 500, 3))
    labels = random.integers(0, 3, 500)
    one, other = (Evaluation("m", 1, score(CLASSES, scores, labels), 1) for scores in (first, second))
    found = Comparison(one, other, pair(CLASSES, first, second, labels, np.arange(500))).share_difference
    assert found is not None
    assert found[0] == pytest.approx(((second.argmax(1) == labels).sum() - (first.argmax(1) == labels).sum()) / 500)
    assert -1 <= found[1] < found[0] < found[2] <= 1


def test_classes_have_recall_and_precision() -> None:
    sums = score(CLASSES, np.eye(3)[[0, 0, 1, 1]], np.array([0, 1, 1, 1]))
    assert isinstance(sums, ClassificationSums)
    a, b, c = class_figures(sums)
    assert (a.recall, a.precision, a.example_count) == (1.0, 0.5, 1)
    assert (b.recall, b.precision) == (pytest.approx(2 / 3), 1.0)
    assert b.recall_interval[0] < 2 / 3 < b.recall_interval[1]
    assert math.isnan(c.recall)
    assert math.isnan(c.precision)
    assert class_figures(ClassificationSums(3, 1)) == ()
