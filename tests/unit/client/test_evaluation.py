"""Figures of an evaluation, and how a data set is cut."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_client.evaluation import Evaluation, batches, default_batch_size, merged, wilson_interval
from fitserve_client.models import ModelVersion, VersionDetails
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.scoring import score
from fitserve_contract.tasks import Scores, Task, TaskKind


def _details(max_batch_size: int, *shapes: tuple[int | str | None, ...]) -> VersionDetails:
    version = ModelVersion(1, "READY", "", True, "CPUExecutionProvider", (), "", max_batch_size, 1.0)
    inputs = tuple(TensorSpec(f"x{index}", "FP32", shape) for index, shape in enumerate(shapes))
    return VersionDetails("m", version, inputs, (), None)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_interval_holds_the_share_and_stays_within_0_and_1(hits, misses):
    count = hits + misses
    low, high = wilson_interval(hits, count)
    if not count:
        assert math.isnan(low)
        assert math.isnan(high)
        return
    assert 0 <= low <= hits / count <= high <= 1
    assert wilson_interval(misses, count) == pytest.approx((1 - high, 1 - low))


@given(st.integers(1, 1000), st.floats(0.001, 0.999))
def test_wilson_bounds_solve_the_score_equation(count, share):
    """Each bound p satisfies (hits/n - p)^2 = z^2 p (1 - p) / n, from which Wilson derived them."""
    hits = round(share * count)
    for bound in wilson_interval(hits, count):
        assert (hits / count - bound) ** 2 == pytest.approx(
            1.959963984540054**2 * bound * (1 - bound) / count, abs=1e-12
        )


@given(st.integers(0, 500), st.integers(1, 70))
def test_batches_cover_every_example_once_in_order(count, size):
    cut = batches(count, size)
    assert [index for part in cut for index in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start == size for part in cut[:-1])


@pytest.mark.parametrize(
    ("max_batch_size", "shapes", "rows", "expected"),
    [
        (64, [("B", 784)], np.zeros((1000, 784), np.float32), 64),
        (1024, [("B", 784)], np.zeros((1000, 784), np.float32), 256),
        (1024, [("B", 1 << 19)], np.zeros((2, 1 << 19), np.float32), 1),
        (0, [(4, 3)], np.zeros((10, 3), np.float32), 4),
        (0, [("N", 3)], np.zeros((10, 3), np.float32), 10),
        (0, [None], np.zeros((10, 3), np.float32), 10),
        (8, [("B",)], np.zeros((0,), np.float32), 8),
    ],
)
def test_default_batch_size_suits_the_model(max_batch_size, shapes, rows, expected):
    assert default_batch_size(_details(max_batch_size, *shapes), {"x0": rows}) == expected


def test_figures_of_each_task():
    one_of_n = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b"))
    parts = [score(one_of_n, np.array([[2.0, 1.0]]), np.array([label])) for label in (0, 0, 0, 1)]
    evaluation = merged("m", 3, parts)
    assert (evaluation["accuracy"], evaluation.batch_count, evaluation.version) == (0.75, 4, 3)
    assert evaluation["accuracy_low"] == pytest.approx(0.300642, abs=1e-6)
    assert evaluation["accuracy_high"] == pytest.approx(0.954413, abs=1e-6)
    assert evaluation["loss"] == pytest.approx((3 * math.log1p(math.exp(-1)) + 1 + math.log1p(math.exp(-1))) / 4)

    any_of_n = Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b"))
    sums = score(any_of_n, np.array([[0.9, 0.1], [0.9, 0.9]]), np.array([[1, 0], [1, 0]]))
    figures = Evaluation("m", 1, sums, 1).figures
    assert (figures["macro_f1"], figures["micro_f1"], figures["exact_match"]) == (0.5, 0.8, 0.5)

    values = Task(TaskKind.REGRESSION, "y", Scores.VALUES)
    sums = score(values, np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    figures = Evaluation("m", 1, sums, 1).figures
    assert figures == pytest.approx({"mse": 1 / 3, "mae": 1 / 3, "r_squared": 0.5})
