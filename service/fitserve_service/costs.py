"""How long runs of a version take, as measured: what decides whether a run may happen on the loop thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fitserve_service.signature import Tensor

_NEWEST_WEIGHT: Final = 0.2
"""Weight of the newest run in the moving mean."""


class CostTable:
    """Run times by rows and by size of a row. Not thread-safe: filled by the loader, then kept on the loop thread.

    A row's size counts in powers of two: a sentence of 500 tokens says nothing of one of 5, and the table stays small
    whatever lengths arrive.
    """

    def __init__(self) -> None:
        self._run_s: dict[int, dict[int, float]] = {}

    def record(self, rows: int, row_elements: int, run_s: float) -> None:
        """Counts a run in; one without rows says nothing and is left out.

        Args:
            rows: Examples in the run.
            row_elements: Elements of one example, all inputs together.
            run_s: Seconds in the runtime.
        """
        if rows:
            costs = self._run_s.setdefault(row_elements.bit_length(), {})
            before_s = costs.get(rows, run_s)
            costs[rows] = before_s + _NEWEST_WEIGHT * (run_s - before_s)

    def expected_s(self, rows: int, row_elements: int) -> float:
        """Tells how long a run should take, from the nearest number of rows measured.

        Returns:
            Seconds; infinity where rows of this size were never run: they are taken to be slow.
        """
        costs = self._run_s.get(row_elements.bit_length())
        if not costs:
            return float("inf")
        exact_s = costs.get(rows)
        if exact_s is not None:
            return exact_s
        nearest = min((size for size in costs if size >= rows), default=0) or max(costs)
        return costs[nearest] * max(1.0, rows / nearest)


def row_elements(inputs: Mapping[str, Tensor], rows: int) -> int:
    """Counts the elements of one example, all inputs together; of a whole request where it has no rows."""
    return sum(tensor.array.size for tensor in inputs.values()) // max(rows, 1)
