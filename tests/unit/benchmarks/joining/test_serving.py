"""What counts as a right answer under load."""

import numpy as np
import pytest

from fitserve_benchmarks.joining.serving import Question

ALONE = np.array([[1.0, 2.0]], np.float32)
BESIDE = np.array([[1.0, 2.0001]], np.float32)


def question(*right: np.ndarray, spread: float = 0.0) -> Question:
    return Question({"x": ALONE}, [right], [spread])


@pytest.mark.parametrize("found", [ALONE, BESIDE])
def test_an_answer_that_is_one_of_the_right_ones_is_exact(found: np.ndarray) -> None:
    assert question(ALONE, BESIDE).verdict([found]) == ""


def test_rounding_is_bounded_by_the_row_beside_copies_of_itself() -> None:
    spread = float(np.abs(BESIDE - ALONE).max())
    asked = question(ALONE, BESIDE, spread=spread)
    assert asked.verdict([ALONE + np.float32(7 * spread)]) == "rounding"
    assert asked.verdict([ALONE + np.float32(9 * spread)]).startswith("output 0: off by 0.0008")


def test_without_rounding_of_its_own_hardly_any_difference_is_right() -> None:
    assert question(ALONE).verdict([ALONE * np.float32(1 + 2e-7)]) == "rounding"
    assert question(ALONE).verdict([ALONE * np.float32(1 + 1e-5)]).startswith("output 0: off by")


def test_not_a_number_shapes_and_texts() -> None:
    nothing = np.array([[np.nan, 2.0]], np.float32)
    assert question(nothing).verdict([nothing]) == ""
    assert "off by inf" in question(ALONE).verdict([nothing])
    assert "off by inf" in question(ALONE).verdict([np.concatenate([ALONE, ALONE])])
    texts = np.array([[b"a"]], object)
    assert question(texts).verdict([np.array([[b"b"]], object)]).startswith("output 0: off by 1")
