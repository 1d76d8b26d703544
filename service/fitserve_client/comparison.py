"""What CompareVersions answered, merged over batches, and what can be concluded from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np

from fitserve_client.evaluation import Evaluation, figures_of
from fitserve_contract.pairing import PairedSums, merge_pairs
from fitserve_contract.sums import RegressionSums, Sums, merge
from fitserve_contract.tensor_bytes import Array

_Z_95: Final = 1.959963984540054

RESAMPLES: Final = 2000
_SEED: Final = 20_260_101
"""The same pairs give the same interval, whoever asks and whenever."""


@dataclass(frozen=True, slots=True)
class McNemar:
    """Whether two versions are equally often right, from the examples on which one alone was.

    Args:
        first_only_count: Examples that the first alone got right.
        second_only_count: Examples that the second alone got right.
        exact_p: Two-sided exact conditional p-value, 0..1.
        mid_p: The same with half of the observed outcome's probability: less conservative.
    """

    first_only_count: int
    second_only_count: int
    exact_p: float
    mid_p: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How far the mean losses lie apart, by resampling the examples with both losses of each.

    Args:
        example_count: Pairs without NaN.
        difference: Mean loss of the second minus that of the first; negative: the second is better.
        low: Lower bound of the 95 % percentile interval.
        high: Upper bound.
    """

    example_count: int
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same examples.

    Args:
        first: Score of the first.
        second: Score of the second.
        paired: Both, example by example; `+` merges them with those of other data sets.
    """

    first: Evaluation
    second: Evaluation
    paired: PairedSums

    @property
    def mcnemar(self) -> McNemar | None:
        """The test of equal accuracy, or of equal exact match; None for regression."""
        if isinstance(self.first.sums, RegressionSums):
            return None
        return mcnemar(self.paired.first_only_count, self.paired.second_only_count)

    @property
    def bootstrap(self) -> Bootstrap | None:
        """The interval of the difference of mean losses; None for classification, or without pairs."""
        if not self.paired.first_losses:
            return None
        return paired_bootstrap(self.paired.first_losses, self.paired.second_losses)

    @property
    def share_difference(self) -> tuple[float, float, float] | None:
        """Share of right examples of the second minus that of the first, with its 95 % interval; None for regression.

        Source: A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions (2005).
        """
        paired = self.paired
        if isinstance(self.first.sums, RegressionSums) or not paired.example_count:
            return None
        count = paired.example_count + 2
        gained, lost = paired.second_only_count + 0.5, paired.first_only_count + 0.5
        middle = (gained - lost) / count
        half = _Z_95 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
        difference = (paired.second_only_count - paired.first_only_count) / paired.example_count
        return difference, max(middle - half, -1.0), min(middle + half, 1.0)

    def figure_pairs(self) -> dict[str, tuple[float, float]]:
        """Gives the figures of both by name."""
        first, second = figures_of(self.first.sums), figures_of(self.second.sums)
        return {name: (first[name], second[name]) for name in first if name in second}


def merged_comparison(parts: Sequence[Comparison]) -> Comparison:
    """Merges the comparisons of batches, at least one."""
    first = _merged([part.first for part in parts])
    second = _merged([part.second for part in parts])
    return Comparison(first, second, merge_pairs([part.paired for part in parts]))


def mcnemar(first_only_count: int, second_only_count: int) -> McNemar:
    """Tests whether the examples that one alone got right are as often the first's as the second's.

    Source: M. Fagerland, S. Lydersen, P. Laake, The McNemar test for binary matched-pairs data: mid-p and asymptotic
    are better than exact conditional, BMC Medical Research Methodology 13 (2013).
    """
    count, fewer = first_only_count + second_only_count, min(first_only_count, second_only_count)
    chances = [math.exp(_log_chance(count, hits)) for hits in range(fewer + 1)]
    below, at = math.fsum(chances[:-1]), chances[-1]
    return McNemar(first_only_count, second_only_count, min(2 * (below + at), 1.0), min(2 * below + at, 1.0))


def paired_bootstrap(first: Sequence[float], second: Sequence[float]) -> Bootstrap:
    """Resamples examples, each with its two losses; the order of the examples does not matter.

    Args:
        first: Losses of the first, (B), at least one.
        second: Losses of the second, (B), same examples.
    """
    differences = np.sort(np.array(second) - np.array(first))
    means = _resampled_means(differences)
    low, high = np.quantile(means, [0.025, 0.975])
    return Bootstrap(len(differences), math.fsum(differences.tolist()) / len(differences), float(low), float(high))


def _resampled_means(values: Array) -> Array:
    random = np.random.default_rng(_SEED)
    count = len(values)
    return np.array([values[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)])


def _log_chance(count: int, hits: int) -> float:
    """Logarithm of the probability of `hits` heads in `count` tosses of a fair coin."""
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return ways - count * math.log(2)


def _merged(parts: Sequence[Evaluation]) -> Evaluation:
    sums: Sums = merge([part.sums for part in parts])
    calls = reduce(lambda total, part: total + part.batch_count, parts, 0)
    return Evaluation(parts[0].model, parts[0].version, sums, calls)
