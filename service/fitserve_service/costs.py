"""How long runs of a version take, as measured: what decides where a run happens, and how many rows it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fitserve_service.batch_sizes import cost_curve, first_batches, row_cost
from fitserve_service.joining import bucket_size
from fitserve_service.signature import Tensor

_NEWEST_WEIGHT: Final = 0.2
"""Weight of the newest run in the moving mean."""

_SLOWER_WEIGHT: Final = 0.01
"""Weight of a run that took longer than the floor: a machine that is busy for a while does not lift it."""

_DOUBT: Final = 0.9
"""What is left of an expectation by which a request was refused: nothing else would ever put a wrong one right."""

_PLAN_RUNS: Final = 512
"""Runs for which a plan of batch sizes holds: it costs about as much as ten short ones."""

_RUN_S: Final = 3e-5
"""What a run costs beside its time in the runtime: the loop's turn, joining, splitting and counting. In process, LeNet:
49 us beside the runtime for a request alone, 23 for each of eight, so 30 for the run and 19 for each."""

_ROW_RUNS: Final = 32
"""Runs for which what a row costs on a machine of its own holds."""

_SLOWNESS_WEIGHT: Final = 0.1
_MOST_SLOWNESS: Final = 20.0
"""One run that was held up says no more than this of the next."""


class CostTable:
    """Run times by rows and by size of a row. Not thread-safe: filled by the loader, then kept on the loop thread.

    A row's size counts in powers of two: a sentence of 500 tokens says nothing of one of 5, and the table stays small
    whatever lengths arrive.
    """

    def __init__(self) -> None:
        self._run_s: dict[int, dict[int, float]] = {}
        self._floor_s: dict[int, dict[int, float]] = {}
        self._run_count = 0
        self._plans: dict[int, tuple[int, list[int]]] = {}
        self._rows_s: dict[int, tuple[int, float]] = {}
        self._slowness, self._spread = 1.0, 0.0

    def record(self, rows: int, row_elements: int, run_s: float) -> None:
        """Counts a run in; one without rows says nothing and is left out.

        Args:
            rows: Examples in the run.
            row_elements: Elements of one example, all inputs together.
            run_s: Seconds in the runtime.
        """
        if rows:
            self._run_count += 1
            costs = self._run_s.setdefault(row_elements.bit_length(), {})
            before_s = costs.get(rows, run_s)
            costs[rows] = before_s + _NEWEST_WEIGHT * (run_s - before_s)
            floors = self._floor_s.setdefault(row_elements.bit_length(), {})
            floor_s = floors.get(rows)
            if floor_s is None:
                floors[rows] = run_s
                return
            floors[rows] = run_s if run_s < floor_s else floor_s + _SLOWER_WEIGHT * (run_s - floor_s)
            error = min(run_s / floor_s, _MOST_SLOWNESS) - self._slowness
            self._slowness += _SLOWNESS_WEIGHT * error
            self._spread += _SLOWNESS_WEIGHT * (abs(error) - self._spread)

    def expected_s(self, rows: int, row_elements: int) -> float:
        """Tells how long a run should take, from the nearest number of rows measured.

        Returns:
            Seconds; infinity where rows of this size were never run: they are taken to be slow.
        """
        return _nearest_s(self._run_s.get(row_elements.bit_length()), rows)

    def floor_s(self, rows: int, row_elements: int) -> float:
        """Tells how long a run takes where nothing else wants the processor, as `expected_s` else.

        Where a run is to happen does not depend on what else the machine has to do: a loop that waits for a processor
        is not helped by a second thread that waits for one too.
        """
        return _nearest_s(self._floor_s.get(row_elements.bit_length()), rows)

    def batch_rows(self, rows: int, row_elements: int, most: int, buckets: Sequence[int]) -> int:
        """Tells how many of the rows that wait to run at once, so that all together take the least time.

        What counts is the time on a processor of its own: waiting hits a few sizes, and would split all that is larger.

        Args:
            rows: Examples that wait, at least 1.
            row_elements: Elements of one example.
            most: Examples in one run at most.
            buckets: Sizes that runs are padded to.

        Returns:
            1 to the lesser of `rows` and `most`.
        """
        size = row_elements.bit_length()
        measured = self._floor_s.get(size)
        wanted = min(rows, most)
        if not measured or wanted < 2:
            return wanted
        made, plan = self._plans.get(size, (-_PLAN_RUNS, []))
        if self._run_count - made >= _PLAN_RUNS or len(plan) <= most:
            plan = first_batches(cost_curve(measured, most, lambda count: bucket_size(count, buckets)) + _RUN_S)
            self._plans[size] = (self._run_count, plan)
        return plan[wanted]

    def typical_s(self, rows: int, row_elements: int) -> float:
        """Tells how long a run should take; 0 where rows of this size were never run."""
        expected_s = self.expected_s(rows, row_elements)
        return 0.0 if expected_s == float("inf") else expected_s

    def row_s(self, row_elements: int) -> float:
        """Tells what each of many waiting rows should take, run together; 0 where rows of this size were never run.

        It decides who is let in, so it keeps up with a machine that slows down, at whatever sizes it does, and it is on
        the safe side: slower by as much as runs differ. Source: the timer of TCP, Jacobson and Karels 1988.
        """
        size = row_elements.bit_length()
        made, row_s = self._rows_s.get(size, (-_ROW_RUNS, 0.0))
        if self._run_count - made >= _ROW_RUNS and (floors := self._floor_s.get(size)):
            row_s = row_cost(floors)
            self._rows_s[size] = (self._run_count, row_s)
        return row_s * (self._slowness + self._spread)

    @property
    def least_s(self) -> float:
        """The shortest run measured, seconds; 0 where there was none."""
        return min((run_s for costs in self._run_s.values() for run_s in costs.values()), default=0.0)

    def doubt(self, rows: int, row_elements: int) -> None:
        """Lowers what a run is expected to take: a request was refused by it, and will not be measured."""
        expected_s = self.expected_s(rows, row_elements)
        if rows and expected_s != float("inf"):
            self._run_s[row_elements.bit_length()][rows] = expected_s * _DOUBT


def _nearest_s(costs: Mapping[int, float] | None, rows: int) -> float:
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


_OBJECT_BYTES: Final = 40
"""Of an object of `bytes`, beside the text that it holds and the reference to it."""


def inputs_bytes(inputs: Mapping[str, Tensor]) -> int:
    """Counts the bytes that a request's inputs hold; of texts their own, the objects' and the references' to them."""
    total = 0
    for _, array in inputs.values():
        total += array.nbytes
        if array.dtype.hasobject:
            total += sum(map(len, array.flat)) + _OBJECT_BYTES * array.size
    return total
