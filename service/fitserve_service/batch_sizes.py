"""How many rows to run at once, from what runs of each size cost: pure functions.

A batch is worth it only as long as it costs less than its parts: kernels change with the size, caches overflow, and a
bucket's padding is paid for. Costs are measured, so they are smoothed first: more rows never cost less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]

_ABOUT_AS_CHEAP: Final = 1.5

LEAST_GAIN: Final = 0.1
"""A split must save this share: less is noise, and every run has a cost of its own that the table does not see."""


def isotonic(values: Sequence[float]) -> list[float]:
    """Gives the nearest values, in least squares, that never fall.

    Source: pool adjacent violators, Ayer et al. 1955.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, before_count = pools.pop()
            mean = (before * before_count + mean * count) / (before_count + count)
            count += before_count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def cost_curve(measured: Mapping[int, float], most: int, padded: Callable[[int], int] = lambda rows: rows) -> Costs:
    """Gives what a run of 1 to `most` rows should cost.

    Args:
        measured: Rows to seconds; at least one. Between two the cost is taken to be on the line, below the smallest to
            be the same, and above the largest to grow with the rows.
        most: Rows of the longest run.
        padded: Gives the rows that really run.

    Returns:
        Seconds, (most,); entry n - 1 is for n rows.
    """
    sizes = sorted(measured)
    smooth = isotonic([measured[size] for size in sizes])
    rows = np.array([padded(count) for count in range(1, most + 1)], np.float64)
    curve: Costs = np.interp(rows, sizes, smooth) * np.maximum(1.0, rows / sizes[-1])
    return curve


def row_cost(measured: Mapping[int, float]) -> float:
    """Gives what each of many waiting rows should cost, when as many run at once as is cheap for each.

    The cheapest size alone would be the luckiest one: it is the mean of all that are about as cheap.

    Args:
        measured: Rows to seconds; at least one.

    Returns:
        Seconds for each row.
    """
    sizes = sorted(measured)
    smooth = isotonic([measured[size] for size in sizes])
    costs = [cost / size for cost, size in zip(smooth, sizes, strict=True)]
    cheap = [cost for cost in costs if cost <= _ABOUT_AS_CHEAP * min(costs)]
    return sum(cheap) / len(cheap)


def cheapest_plans(costs: Costs) -> Costs:
    """Gives the least that n rows can cost, in however many runs.

    Args:
        costs: Of one run of 1 to N rows, (N,).

    Returns:
        (N + 1,); entry n is for n rows, 0 for none.
    """
    least = np.zeros(len(costs) + 1)
    for rows in range(1, len(least)):
        least[rows] = (costs[:rows] + least[rows - 1 :: -1]).min()
    return least


def first_batches(costs: Costs, least_gain: float = LEAST_GAIN) -> list[int]:
    """Gives how many of n waiting rows to run first, so that all together cost least.

    Args:
        costs: Of one run of 1 to N rows, (N,).
        least_gain: What a split must save, as a share of the whole; else all run at once.

    Returns:
        Entry n is for n waiting rows, 0 for none.
    """
    least = cheapest_plans(costs)
    first = list(range(len(least)))
    for rows in range(2, len(least)):
        if least[rows] < costs[rows - 1] * (1 - least_gain):
            # The largest part first: it serves the most, and what arrives meanwhile may fill up the rest.
            parts = costs[:rows] + least[rows - 1 :: -1]
            first[rows] = int(np.flatnonzero(parts <= least[rows] * (1 + 1e-9))[-1]) + 1
    return first
