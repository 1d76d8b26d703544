"""Class names with probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fitserve_client.answers import named_classes, softmax
from fitserve_contract.tasks import Scores, Task, TaskKind

NAMES = ("shirt", "boot", "bag", "coat")
ONE_OF_N = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, NAMES)


def test_the_three_likeliest_classes_come_first():
    (classes,) = named_classes(ONE_OF_N, np.log(np.array([[0.1, 0.6, 0.05, 0.25]], np.float32)))
    assert [named.name for named in classes] == ["boot", "coat", "shirt"]
    assert [named.probability for named in classes] == pytest.approx([0.6, 0.25, 0.1], abs=1e-6)


def test_a_tie_goes_to_the_lower_index_as_in_evaluate():
    task = Task(TaskKind.CLASSIFICATION, "logits", Scores.LOGITS, tuple(map(str, range(100))))
    (classes,) = named_classes(task, np.arange(100)[None] % 2)
    assert [named.name for named in classes] == ["1", "3", "5"]


def test_probabilities_are_left_as_they_are():
    task = Task(TaskKind.CLASSIFICATION, "p", Scores.PROBABILITIES, NAMES)
    (classes,) = named_classes(task, np.array([[0.0, 0.5, 0.25, 0.125]]))
    assert [named.probability for named in classes] == [0.5, 0.25, 0.125]


def test_multi_label_names_what_is_predicted():
    task = Task(TaskKind.MULTI_LABEL, "p", Scores.PROBABILITIES, NAMES)
    first, second = named_classes(task, np.array([[0.5, 0.4, 0.9, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    assert [named.name for named in first] == ["bag", "shirt"]
    assert second == ()


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 4), ()])
def test_scores_of_another_shape_have_no_names(shape):
    assert named_classes(ONE_OF_N, np.zeros(shape, np.float32)) is None


def test_regression_has_no_names():
    assert named_classes(Task(TaskKind.REGRESSION, "y", Scores.VALUES), np.zeros((1, 1))) is None


@given(hnp.arrays(np.float64, (2, 5), elements=st.floats(-1e300, 1e300)))
def test_softmax_rows_sum_to_one_and_keep_the_order(logits):
    shares = softmax(logits)
    assert shares.sum(axis=1) == pytest.approx(1)
    for row, share in zip(logits, shares, strict=True):
        assert (np.diff(share[np.argsort(row, kind="stable")]) >= 0).all()


def test_softmax_of_infinities_and_nan():
    shares = softmax(np.array([[np.inf, 0, np.inf], [-np.inf, 0, 0], [np.nan, 0, 1]]))
    assert shares[:2].tolist() == [[0.5, 0, 0.5], [0, 0.5, 0.5]]
    assert np.isnan(shares[2]).all()
