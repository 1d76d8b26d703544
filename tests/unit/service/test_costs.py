"""What a run is expected to cost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fitserve_service.costs import CostTable, row_elements
from fitserve_service.signature import Tensor


def test_what_was_never_run_is_taken_to_be_slow() -> None:
    costs = CostTable()

    assert costs.expected_s(1, 10) == math.inf
    costs.record(1, 10, 0.001)
    assert costs.expected_s(1, 10) == 0.001
    assert costs.expected_s(1, 5000) == math.inf


def test_the_nearest_larger_run_decides_and_beyond_the_largest_it_grows_with_the_rows() -> None:
    costs = CostTable()
    costs.record(2, 4, 0.002)
    costs.record(8, 4, 0.003)

    assert costs.expected_s(1, 4) == 0.002
    assert costs.expected_s(5, 4) == 0.003
    assert costs.expected_s(80, 4) == pytest.approx(0.03)


def test_a_run_without_rows_says_nothing_of_one_with_rows() -> None:
    costs = CostTable()
    costs.record(0, 4, 1e-6)

    assert costs.expected_s(5, 4) == math.inf


def test_costs_follow_what_is_measured() -> None:
    costs = CostTable()
    costs.record(1, 1, 0.010)
    for _ in range(60):
        costs.record(1, 1, 0.001)

    assert costs.expected_s(1, 1) == pytest.approx(0.001, rel=0.01)


def test_long_rows_do_not_make_short_ones_dear_nor_the_other_way_round() -> None:
    costs = CostTable()
    costs.record(1, 8, 0.0001)
    costs.record(1, 512, 0.3)

    assert costs.expected_s(1, 8) == 0.0001
    assert costs.expected_s(1, 512) == 0.3


def test_the_table_stays_small_whatever_sizes_arrive() -> None:
    costs = CostTable()
    for elements in range(1, 5000):
        costs.record(1, elements, 0.001)

    assert len(costs._run_s) == 13


def test_row_elements_counts_all_inputs_of_one_example() -> None:
    inputs = {"a": Tensor("FP32", np.zeros((4, 3))), "b": Tensor("FP32", np.zeros((4, 2, 2)))}

    assert row_elements(inputs, 4) == 7
    assert row_elements({"a": Tensor("FP32", np.zeros((0, 3)))}, 0) == 0
