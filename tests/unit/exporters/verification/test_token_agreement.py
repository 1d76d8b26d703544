"""Answers per position, torch against ONNX Runtime: padding by its label, and ties, decide nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitserve_contract.tasks import IGNORED_LABEL, Scores, Task, TaskKind
from fitserve_exporters.verification.verify import _compare, _counted, _Tally

TAGS = Task(TaskKind.TOKEN_CLASSIFICATION, "y", Scores.LOGITS, ("O", "B", "I"))
TOLERANCE, FIRST = 1e-3, 100


@dataclass
class Known:
    """Scores whose float64 values are known."""

    scores: np.ndarray
    rounding: float = 1e-6

    def exact_scores(self, indices: np.ndarray) -> np.ndarray:
        return self.scores[indices - FIRST]


def tally_of(eager: np.ndarray, served: np.ndarray, labels: np.ndarray | None) -> _Tally:
    tally, indices = _Tally(TAGS), np.arange(len(eager)) + FIRST
    tally.example_count = len(eager)
    _compare(tally, TAGS, (served, eager), (Known(eager), indices), TOLERANCE, _counted(TAGS, eager, labels))  # type: ignore[arg-type]
    return tally


def test_positions_are_sorted_into_same_ties_and_differences() -> None:
    eager = np.eye(3)[np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])]
    eager[1, 1] = [0.5, 0.5 + 1e-9, 0.0]
    eager[2, 1] = [0.5, 0.5 + 1e-9, 0.0]
    served = eager.copy()
    served[1, 1] = [0.6, 0.5, 0.0]
    served[2, 1], served[2, 2] = [0.6, 0.5, 0.0], [1.0, 0.0, 0.0]
    served[3, 2] = [1.0, 0.0, 0.0]
    tally = tally_of(eager, served, None)
    assert (tally.ties, tally.tie_differences, tally.differences) == ([101, 102], [101], [102, 103])
    agreement = tally.agreement()
    assert agreement is not None
    assert agreement.same_count == 1


def test_a_position_that_does_not_count_is_not_compared() -> None:
    eager = np.eye(3)[np.array([[0, 1, 2], [0, 1, 2]])]
    eager[1, 2] = [0.5, 0.5, 0.0]
    served = eager.copy()
    served[:, 2] = [1.0, 0.0, 0.0]
    labels = np.array([[0, 1, IGNORED_LABEL], [0, 1, IGNORED_LABEL]])
    tally = tally_of(eager, served, labels)
    assert (tally.ties, tally.tie_differences, tally.differences) == ([], [], [])
    assert tally_of(eager, served, np.zeros((2, 3), int)).differences == [100]
