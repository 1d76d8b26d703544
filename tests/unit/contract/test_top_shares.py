"""Shares of the best k classes are given where they say something."""

from __future__ import annotations

import pytest

from fitserve_contract.sums import ClassificationSums


@pytest.mark.parametrize(("class_count", "expected"), [(1, []), (2, []), (3, [2]), (4, [2, 3]), (9, [2, 3, 4, 5])])
def test_a_k_of_all_classes_is_left_out(class_count: int, expected: list[int]) -> None:
    sums = ClassificationSums(
        example_count=1, confusion_counts=(0,) * class_count**2, top_counts=(1,) * min(5, class_count)
    )

    assert list(sums.top_shares) == expected


def test_without_a_confusion_every_k_counts() -> None:
    assert list(ClassificationSums(example_count=1, top_counts=(0, 1, 1)).top_shares) == [2, 3]
