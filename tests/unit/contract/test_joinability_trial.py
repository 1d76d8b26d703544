"""The trial on functions whose coupling is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fitserve_contract.datatypes import NUMPY_DTYPES
from fitserve_contract.joinability.trial import Rows, hostile_rows, trial_problem
from fitserve_contract.tensor_bytes import Array

WEIGHTS = np.linspace(-1, 1, 4, dtype=np.float32)


def ordinary(datatype: str = "FP32", shape: tuple[int, ...] = (1, 4)) -> dict[str, Array]:
    return {"x": np.linspace(0, 1, int(np.prod(shape))).reshape(shape).astype(NUMPY_DTYPES[datatype])}


def tried(function: Callable[[Array], Array], datatype: str = "FP32") -> str:
    row = ordinary(datatype)

    def run(rows: Rows) -> Rows:
        with np.errstate(all="ignore"):
            return {"y": function(rows["x"])}

    return trial_problem(run, [row, *hostile_rows(row, {"x": datatype})])


def quantized(x: Array) -> Array:
    scale = np.abs(np.nan_to_num(x, posinf=0, neginf=0)).max() / 127 + np.float32(1e-6)
    return np.round(x / scale) * scale


INDEPENDENT: dict[str, Callable[[Array], Array]] = {
    "scaled": lambda x: x * WEIGHTS,
    "softmax": lambda x: np.exp(x - x.max(1, keepdims=True)),
    "sorted within a row": lambda x: np.sort(x, axis=1),
    "scalar of a row": lambda x: (x * WEIGHTS).sum(axis=1),
    "quantized by row": lambda x: np.stack([quantized(row) for row in x]),
    "constant": lambda x: np.ones((len(x), 2), np.float32),
}

COUPLED: dict[str, tuple[Callable[[Array], Array], str]] = {
    "peak": (lambda x: x / np.abs(x).max(), "neighbours"),
    "255 or unit": (lambda x: x / 255 if x.max() > 1 else x, "neighbours"),
    "cumulative": (lambda x: x.cumsum(axis=0), "row"),
    "centred": (lambda x: x - x.mean(axis=0), "row"),
    "softmax over rows": (lambda x: np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0), "row"),
    "quantized by batch": (quantized, "neighbours"),
    "shifted": (lambda x: np.roll(x, 1, axis=0), "neighbours"),
    "last row": (lambda x: np.repeat(x[-1:], len(x), axis=0), "neighbours"),
    "sorted over rows": (lambda x: np.sort(x, axis=0), "neighbours"),
    "divided by the size": (lambda x: x / len(x), "a row alone differs"),
    "one row for all": (lambda x: x.mean(axis=0, keepdims=True), "one row for each row"),
    "scalar": (lambda x: x.mean(), "one row for each row"),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_rows_pass(name: str) -> None:
    assert tried(INDEPENDENT[name]) == ""


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rows_are_found(name: str) -> None:
    function, found = COUPLED[name]
    assert found in tried(function)


def test_integers_and_flags_are_tried_at_their_extremes() -> None:
    assert "neighbours" in tried(lambda x: x - x.max(), "INT64")
    assert "neighbours" in tried(lambda x: x | x.any(), "BOOL")
    assert tried(lambda x: x + 1, "UINT8") == ""


def test_an_answer_that_changes_from_run_to_run_is_not_repeatable() -> None:
    random = np.random.default_rng(0)
    assert "two runs of the same 3 rows differ" in tried(lambda x: x + random.random(x.shape).astype(np.float32) * 1e-3)


def test_rows_that_the_model_refuses_are_left_out() -> None:
    def run(rows: Rows) -> Rows | None:
        return None if (np.abs(rows["x"]) >= 100).any() else {"y": rows["x"] - rows["x"].max()}

    row = ordinary("INT64")
    assert "neighbours" in trial_problem(run, [row, *hostile_rows(row, {"x": "INT64"})])
    assert "does not run" in trial_problem(lambda _: None, [row])


def test_a_large_size_is_tried_where_the_model_runs_it() -> None:
    def at_size(most: int) -> Callable[[Rows], Rows | None]:
        def run(rows: Rows) -> Rows | None:
            x = rows["x"]
            return None if len(x) > most else {"y": np.roll(x, 1, axis=0) if len(x) > 8 else x}

        return run

    row = ordinary()
    rows = [row, *hostile_rows(row, {"x": "FP32"})]
    assert "of 64 depends on its neighbours" in trial_problem(at_size(64), rows, sizes=(3, 64))
    assert trial_problem(at_size(63), rows, sizes=(3, 64)) == ""
    assert "does not run 3 rows" in trial_problem(at_size(2), rows, sizes=(3, 64))


def test_without_time_the_ordinary_row_is_tried_at_one_size_all_the_same() -> None:
    batches: list[int] = []

    def run(rows: Rows) -> Rows:
        batches.append(len(rows["x"]))
        return {"y": rows["x"]}

    row = ordinary()
    assert trial_problem(run, [row, *hostile_rows(row, {"x": "FP32"})], is_over=lambda: True) == ""
    assert set(batches) == {1, 3}


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_hostile_rows_fit_their_input(datatype: str) -> None:
    shape = (1, 2, 3)
    row = {"x": np.zeros(shape, NUMPY_DTYPES[datatype]), "scalar": np.zeros((1,), np.float32)}
    made = hostile_rows(row, {"x": datatype, "scalar": "FP32"})
    assert 4 < len(made) <= 24
    for each in made:
        assert each["x"].shape == shape
        assert each["x"].dtype == NUMPY_DTYPES[datatype]
    if datatype in ("FP16", "FP32", "FP64"):
        values = np.concatenate([each["x"].reshape(-1) for each in made]).astype(np.float64)
        assert np.isnan(values).any()
        assert np.isposinf(values).any()
        assert np.isneginf(values).any()
    if datatype.startswith(("INT", "UINT")):
        values = np.concatenate([each["x"].reshape(-1) for each in made])
        info = np.iinfo(values.dtype)
        lowest = info.min + 1 if info.min else 0
        assert {lowest, info.max} <= set(values.tolist())
        assert not {-1, info.min} & set(values.tolist()) or not info.min
