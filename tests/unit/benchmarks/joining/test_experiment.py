"""The experiment behind the labels: what neighbours change, and what rounding does not."""

import math

import numpy as np
import pytest

from fitserve_benchmarks.joining.coupled_disguises import COUPLED_DISGUISES
from fitserve_benchmarks.joining.coupled_graphs import COUPLED_GRAPHS
from fitserve_benchmarks.joining.coupled_signatures import COUPLED_SIGNATURES
from fitserve_benchmarks.joining.experiment import Caller, deviation, largest_difference, open_session, together
from fitserve_benchmarks.joining.labelled import LabelledModel, from_text
from fitserve_benchmarks.joining.tables import TABLES


@pytest.mark.parametrize(
    "model", [*TABLES, *COUPLED_GRAPHS, *COUPLED_SIGNATURES, *COUPLED_DISGUISES], ids=lambda model: model.name
)
def test_every_graph_does_what_its_label_says(model: LabelledModel) -> None:
    session = open_session(model.build())
    found = deviation(session, Caller(session, model.ranges, model.sizes, 0))
    assert found.is_coupled is not model.is_independent, found


def test_rows_differ_by_magnitude_and_sign() -> None:
    session = open_session(from_text("g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"))
    caller = Caller(session, {}, {}, 0)
    rows = together([caller.row() for _ in range(64)])["x"]
    sizes = np.abs(rows).max(axis=1)
    assert rows.shape == (64, 4)
    assert sizes.max() / sizes.min() > 1e3
    assert rows.min() < 0 < rows.max()


def test_integers_stay_in_their_range_and_free_axes_have_the_size_asked_for() -> None:
    session = open_session(from_text("g (int64[N,S] x) => (int64[N,S] y) { y = Identity(x) }"))
    caller = Caller(session, {"x": (3, 5)}, {"S": 40}, 0)
    row = caller.row()["x"]
    assert row.shape == (1, 40)
    assert set(np.unique(row)) == {3, 4, 5}


def test_an_example_gives_the_values() -> None:
    session = open_session(from_text("g (int64[N,2] x) => (int64[N,2] y) { y = Identity(x) }"))
    caller = Caller(session, {}, {}, 0, {"x": np.array([[70, 80], [90, 100]])})
    assert {tuple(caller.row()["x"][0]) for _ in range(20)} == {(70, 80), (90, 100)}


def test_a_model_that_runs_at_no_size_is_told() -> None:
    text = "g (float[N,4] x) => (float[3,4] y) { s = Constant<value = int64[2] {3, 4}>() y = Reshape(x, s) }"
    session = open_session(from_text(text))
    with pytest.raises(ValueError, match="expected a model that runs at 1 and 5 rows"):
        deviation(session, Caller(session, {}, {}, 0))


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.inf], [1.5, math.inf], 0.5),
        ([1.0], [math.nan], math.inf),
        ([math.inf], [-math.inf], math.inf),
        ([1, 2], [1, 3], 1.0),
        (["a"], ["b"], 1.0),
        ([1.0], [1.0, 2.0], math.inf),
    ],
)
def test_largest_difference(one: list[float], other: list[float], difference: float) -> None:
    assert largest_difference(np.array(one), np.array(other)) == difference
