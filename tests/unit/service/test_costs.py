"""What a run is expected to cost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fitserve_service.costs import CostTable, inputs_bytes, row_elements
from fitserve_service.signature import Tensor


def test_what_was_never_run_is_taken_to_be_slow() -> None:
    costs = CostTable()

    assert costs.expected_s(1, 10) == math.inf
    costs.record(1, 10, 0.001)
    assert costs.expected_s(1, 10) == 0.001
    assert costs.expected_s(1, 5000) == math.inf


def test_the_floor_follows_what_is_faster_at_once_and_is_hardly_lifted_by_what_is_slower() -> None:
    costs = CostTable()
    assert costs.floor_s(1, 4) == math.inf
    costs.record(1, 4, 0.001)
    for _ in range(10):
        costs.record(1, 4, 0.010)
    assert 0.001 < costs.floor_s(1, 4) < 0.002 < costs.expected_s(1, 4)
    costs.record(1, 4, 0.0005)
    assert costs.floor_s(1, 4) == 0.0005
    for _ in range(1000):
        costs.record(1, 4, 0.010)
    assert costs.floor_s(1, 4) == pytest.approx(0.010, rel=0.01)


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


def test_rows_are_taken_as_long_as_they_cost_less_together() -> None:
    costs = CostTable()
    for rows, run_s in ((1, 1.0), (4, 1.3), (5, 9.0), (8, 9.3)):
        costs.record(rows, 2, run_s)

    assert [costs.batch_rows(rows, 2, 8, ()) for rows in (1, 3, 4, 5, 8, 20)] == [1, 3, 4, 4, 4, 4]
    assert costs.batch_rows(20, 500, 8, ()) == 8


def test_a_plan_follows_what_is_measured_later() -> None:
    costs = CostTable()
    for rows, run_s in ((1, 1.0), (2, 9.0)):
        costs.record(rows, 2, run_s)
    assert costs.batch_rows(2, 2, 2, ()) == 1

    for _ in range(600):
        costs.record(2, 2, 1.1)
    assert costs.batch_rows(2, 2, 2, ()) == 2


def test_an_expectation_that_refuses_is_doubted_until_it_refuses_no_more() -> None:
    costs = CostTable()
    costs.record(1, 2, 5.0)
    for _ in range(50):
        costs.doubt(1, 2)
    costs.doubt(0, 2)
    costs.doubt(1, 999)

    assert 0 < costs.expected_s(1, 2) < 0.1
    assert costs.expected_s(1, 999) == math.inf


def test_what_each_of_many_rows_takes_follows_what_is_measured() -> None:
    costs = CostTable()
    assert (costs.row_s(4), costs.typical_s(1, 4), costs.least_s) == (0.0, 0.0, 0.0)

    costs.record(1, 4, 0.004)
    costs.record(8, 4, 0.008)
    assert costs.row_s(4) == pytest.approx(0.001)
    assert costs.typical_s(8, 4) == costs.expected_s(8, 4)
    assert costs.least_s == 0.004
    for _ in range(32):
        costs.record(8, 4, 0.080)
    assert costs.row_s(4) > 0.003
    assert costs.row_s(5000) == 0.0


def test_bytes_of_inputs_are_what_their_content_holds() -> None:
    texts = np.array([b"four", b"", b"seven77"], object)
    inputs = {"x": Tensor("FP32", np.zeros((2, 3), np.float32)), "t": Tensor("BYTES", texts)}

    assert inputs_bytes(inputs) == 24 + texts.nbytes + 11 + 3 * 40
    assert inputs_bytes({}) == 0


def test_a_machine_that_slows_down_makes_every_row_cost_more_at_whatever_size_it_is_seen() -> None:
    costs = CostTable()
    for rows in (1, 2, 4, 8):
        costs.record(rows, 4, rows * 0.001)
    assert costs.row_s(4) == pytest.approx(0.001)

    for _ in range(20):
        costs.record(2, 4, 0.004)
    assert 0.0018 < costs.row_s(4) < 0.004
    for _ in range(60):
        costs.record(4, 4, 0.004)
    assert costs.row_s(4) == pytest.approx(0.001, rel=0.1)
