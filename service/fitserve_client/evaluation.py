"""What Evaluate answered, merged over the batches of a data set; and how a data set is cut into batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fitserve_client.models import VersionDetails
from fitserve_contract.manifest import TensorSpec
from fitserve_contract.sums import (
    ClassificationSums,
    MultiLabelSums,
    RegressionSums,
    Sums,
    TokenClassificationSums,
    merge,
)
from fitserve_contract.tensor_bytes import Array

LARGEST_DEFAULT_BATCH: Final = 256
_DEFAULT_BATCH_BYTES: Final = 2 << 20

_Z_95: Final = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The score of one version on a data set.

    Args:
        model: Model that was scored.
        version: The one version that scored every batch.
        sums: Exact sums over the data set; they merge with those of other data sets by `+`.
        batch_count: Calls that were made.
    """

    model: str
    version: int
    sums: Sums
    batch_count: int

    @property
    def figures(self) -> Mapping[str, float]:
        """Figures by name.

        Classification: accuracy with its 95 % Wilson interval, loss (mean cross-entropy, nats), and from newer servers
        balanced_accuracy, macro_f1, top_2 to top_5 (share of examples whose label is among the k best) and
        calibration_error (ECE). Token classification: the same over the positions that count, and exact_match (examples
        without a wrong position); the interval is that of the exact match, as positions of one example are not
        independent. Multi-label: exact match with its interval, macro and micro F1, loss (mean binary cross-entropy,
        nats). Regression: mse, mae, r_squared.
        """
        return figures_of(self.sums)

    @property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Figures of each class, in class order, with the others taken together; none where they were not counted."""
        sums = self.sums.positions if isinstance(self.sums, TokenClassificationSums) else self.sums
        return class_figures(sums) if isinstance(sums, ClassificationSums) else ()

    def __getitem__(self, figure: str) -> float:
        return self.figures[figure]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How one class fares.

    Args:
        example_count: Examples of this class; positions of it for token classification.
        predicted_count: Examples that were answered with this class.
        correct_count: Both.
    """

    example_count: int
    predicted_count: int
    correct_count: int

    @property
    def recall(self) -> float:
        """Share of the class's examples that were found, 0..1; NaN where there are none."""
        return self.correct_count / self.example_count if self.example_count else math.nan

    @property
    def recall_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the recall."""
        return wilson_interval(self.correct_count, self.example_count)

    @property
    def precision(self) -> float:
        """Share of the answers with this class that were right, 0..1; NaN where there are none."""
        return self.correct_count / self.predicted_count if self.predicted_count else math.nan


def class_figures(sums: ClassificationSums) -> tuple[ClassFigures, ...]:
    """Reads the figures of each class from the counts; none where they were not counted for every example."""
    if counts := sums.per_class:
        parts = zip(counts.example_counts, counts.predicted_counts, counts.true_positives, strict=True)
        return tuple(ClassFigures(*part) for part in parts)
    if sum(sums.confusion_counts) + sums.nan_count != sums.example_count:
        return ()
    columns = [sum(column) for column in zip(*sums.confusion, strict=True)]
    return tuple(ClassFigures(sum(row), columns[index], row[index]) for index, row in enumerate(sums.confusion))


def figures_of(sums: Sums) -> dict[str, float]:
    """Gives figures by name; see `Evaluation.figures`."""
    if isinstance(sums, ClassificationSums):
        return _classification_figures(sums)
    if isinstance(sums, TokenClassificationSums):
        return _token_figures(sums)
    if isinstance(sums, MultiLabelSums):
        return _multi_label_figures(sums)
    return _regression_figures(sums)


def merged(model: str, version: int, parts: Iterable[Sums]) -> Evaluation:
    """Merges the sums of batches, at least one."""
    batches = list(parts)
    return Evaluation(model, version, merge(batches), len(batches))


def wilson_interval(hit_count: int, count: int) -> tuple[float, float]:
    """Computes the 95 % Wilson score interval of a share, each bound 0..1; (NaN, NaN) where there is nothing.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return math.nan, math.nan
    share, z_squared = hit_count / count, _Z_95 * _Z_95
    scale = 1 + z_squared / count
    middle = (share + z_squared / (2 * count)) / scale
    half = _Z_95 / scale * math.sqrt(share * (1 - share) / count + z_squared / (4 * count * count))
    low = 0.0 if hit_count == 0 else max(middle - half, 0.0)
    return low, 1.0 if hit_count == count else min(middle + half, 1.0)


def default_batch_size(details: VersionDetails, arrays: Mapping[str, Array]) -> int:
    """Chooses how many examples go into one call.

    A version without a batch axis takes what its first axis says, or everything at once. Others take as many as the
    server joins, at most 256 and about 2 MiB.

    Args:
        details: The version.
        arrays: Input name to array, the first axis counts examples.
    """
    example_count = max((len(array) for array in arrays.values()), default=1)
    if details.version.max_batch_size == 0:
        fixed = {_first_axis(spec) for spec in details.inputs if spec.name in arrays}
        size = fixed.pop() if len(fixed) == 1 else None
        return size or max(example_count, 1)
    example_bytes = sum(array.nbytes for array in arrays.values()) // max(example_count, 1)
    by_bytes = _DEFAULT_BATCH_BYTES // max(example_bytes, 1)
    return max(1, min(details.version.max_batch_size, LARGEST_DEFAULT_BATCH, by_bytes))


def batches(example_count: int, batch_size: int) -> list[slice]:
    """Cuts a count of examples into slices of a size >= 1; the last one may be smaller."""
    return [slice(start, min(start + batch_size, example_count)) for start in range(0, example_count, batch_size)]


def _first_axis(spec: TensorSpec) -> int | None:
    first = spec.shape[0] if spec.shape else None
    return first if isinstance(first, int) else None


def _classification_figures(sums: ClassificationSums) -> dict[str, float]:
    low, high = wilson_interval(sums.correct_count, sums.example_count)
    shares = {"accuracy": sums.accuracy, "accuracy_low": low, "accuracy_high": high}
    return shares | _class_figures(sums)


def _class_figures(sums: ClassificationSums) -> dict[str, float]:
    counts = sums.per_class
    balanced = {"balanced_accuracy": counts.balanced_accuracy, "macro_f1": counts.macro_f1} if counts else {}
    figures = {**balanced, "loss": sums.mean_loss}
    figures |= {f"top_{k}": share for k, share in sums.top_shares.items()}
    return figures | ({"calibration_error": sums.calibration_error} if sums.bin_counts else {})


def _token_figures(sums: TokenClassificationSums) -> dict[str, float]:
    low, high = wilson_interval(sums.exact_match_count, sums.example_count)
    exact = {"exact_match": sums.exact_match, "exact_match_low": low, "exact_match_high": high}
    return {"accuracy": sums.positions.accuracy, **exact, **_class_figures(sums.positions)}


def _multi_label_figures(sums: MultiLabelSums) -> dict[str, float]:
    low, high = wilson_interval(sums.exact_match_count, sums.example_count)
    return {
        "exact_match": sums.exact_match,
        "exact_match_low": low,
        "exact_match_high": high,
        "macro_f1": sums.macro_f1,
        "micro_f1": sums.micro_f1,
        "loss": sums.mean_loss,
    }


def _regression_figures(sums: RegressionSums) -> dict[str, float]:
    return {"mse": sums.mse, "mae": sums.mae, "r_squared": sums.r_squared}
