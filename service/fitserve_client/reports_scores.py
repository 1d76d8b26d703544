"""What evaluate and compare say: figures with their intervals, per class, and two versions side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from fitserve_client.comparison import Comparison
from fitserve_client.evaluation import ClassFigures, Evaluation, wilson_interval
from fitserve_client.models import VersionDetails
from fitserve_client.reports import Report, json_value
from fitserve_contract.printable import printable
from fitserve_contract.sums import ClassificationSums, MultiLabelSums, RegressionSums, TokenClassificationSums

_SHOWN_INDICES: Final = 10

_SHOWN_CLASSES: Final = 128
"""Where there are more classes, so many are shown, those of the lowest recall."""


def evaluation_report(evaluation: Evaluation, details: VersionDetails) -> Report:
    """Describes what Evaluate answered."""
    sums, calls = evaluation.sums, "1 call" if evaluation.batch_count == 1 else f"{evaluation.batch_count:,} calls"
    title = f"{evaluation.model} version {evaluation.version}, {sums.example_count:,} examples in {calls}"
    document: dict[str, Any] = {
        "model": evaluation.model,
        "version": evaluation.version,
        "batch_count": evaluation.batch_count,
        "figures": json_value(dict(evaluation.figures)),
        "sums": json_value(asdict(sums)),
    }
    names = details.task.class_names if details.task else ()
    if isinstance(sums, RegressionSums):
        return Report(document, above=[title, *_regression_lines(sums)])
    document["class_names"] = list(names)
    if isinstance(sums, MultiLabelSums):
        return Report(document, *_label_rows(sums, names), above=[title, *_multi_label_lines(sums)])
    above = [title, *(_token_lines(sums) if isinstance(sums, TokenClassificationSums) else _classification_lines(sums))]
    if not (classes := evaluation.classes):
        return Report(document, above=above)
    document["classes"] = json_value(_class_documents(classes, names))
    header, rows = _class_rows(classes, names)
    hidden = len(classes) - len(rows)
    below = [f"… and {hidden:,} more classes, of higher recall or without examples: --json has all"] if hidden else []
    return Report(document, header, rows, above=above, below=below)


def comparison_report(comparison: Comparison) -> Report:
    """Describes what CompareVersions answered."""
    first, second, paired = comparison.first, comparison.second, comparison.paired
    titles = [f"{each.model} version {each.version}" for each in (first, second)]
    test, bootstrap, share = comparison.mcnemar, comparison.bootstrap, comparison.share_difference
    document: dict[str, Any] = {
        "first": {"model": first.model, "version": first.version, "figures": dict(first.figures)},
        "second": {"model": second.model, "version": second.version, "figures": dict(second.figures)},
        "paired": {key: value for key, value in asdict(paired).items() if not key.endswith("_losses")},
        "share_difference": dict(zip(("difference", "low", "high"), share, strict=True)) if share else None,
        "mcnemar": asdict(test) if test else None,
        "bootstrap": asdict(bootstrap) if bootstrap else None,
    }
    rows = [
        [name, f"{one:.6g}", f"{other:.6g}", f"{other - one:+.6g}"]
        for name, (one, other) in comparison.figure_pairs().items()
        if not name.endswith(("_low", "_high"))
    ]
    title = f"{titles[0]} against {titles[1]}, {paired.example_count:,} examples"
    header = ("", "first", "second", "difference")
    return Report(json_value(document), header, rows, above=[title], below=_conclusions(comparison))


def _conclusions(comparison: Comparison) -> list[str]:
    paired, lines = comparison.paired, []
    test, bootstrap, share = comparison.mcnemar, comparison.bootstrap, comparison.share_difference
    if test and share:
        lines.append(
            f"right: both {paired.both_count:,}, first alone {paired.first_only_count:,}, "
            f"second alone {paired.second_only_count:,}, neither {paired.neither_count:,}"
        )
        lines.append(f"share right: {share[0]:+.4f}; 95 % interval {share[1]:+.4f}..{share[2]:+.4f}")
        lines.append(f"McNemar: exact p {test.exact_p:.3g}, mid-p {test.mid_p:.3g}")
    if bootstrap:
        between = f"95 % interval {bootstrap.low:+.4g}..{bootstrap.high:+.4g} of a paired bootstrap"
        lines.append(f"mean loss: {bootstrap.difference:+.4g}; {between}")
    shown = ", ".join(map(str, paired.difference_indices[:_SHOWN_INDICES]))
    more = ", …" if paired.difference_count > _SHOWN_INDICES else ""
    return [*lines, f"answered differently: {paired.difference_count:,}" + (f": {shown}{more}" if shown else "")]


def _classification_lines(sums: ClassificationSums) -> list[str]:
    low, high = wilson_interval(sums.correct_count, sums.example_count)
    share = f"{sums.correct_count:,} of {sums.example_count:,}; 95 % interval {low:.4f}..{high:.4f}"
    return [f"accuracy           {sums.accuracy:.4f}  ({share})", *_class_lines(sums)]


def _token_lines(sums: TokenClassificationSums) -> list[str]:
    positions = sums.positions
    low, high = wilson_interval(sums.exact_match_count, sums.example_count)
    share = f"{sums.exact_match_count:,} of {sums.example_count:,}; 95 % interval {low:.4f}..{high:.4f}"
    return [
        f"accuracy           {_share(positions.accuracy)}  ({positions.correct_count:,} of {positions.example_count:,} "
        "positions that count)",
        f"exact match        {_share(sums.exact_match)}  ({share})",
        *_class_lines(positions),
    ]


def _class_lines(sums: ClassificationSums) -> list[str]:
    lines = []
    if counts := sums.per_class:
        lines.append(f"balanced accuracy  {_share(counts.balanced_accuracy)}  (mean recall of the classes)")
        lines.append(f"macro F1           {_share(counts.macro_f1)}")
    lines.append(f"loss               {sums.mean_loss:.6g}")
    if sums.bin_counts:
        lines.append(f"ECE                {sums.calibration_error:.4f}")
    if shares := sums.top_shares:
        top = ", ".join(f"top-{k} {value:.4f}" for k, value in shares.items())
        lines.append(f"label among the best: {top}")
    return [*lines, *_count_lines({"ties": sums.tie_count, "with NaN": sums.nan_count})]


def _multi_label_lines(sums: MultiLabelSums) -> list[str]:
    low, high = wilson_interval(sums.exact_match_count, sums.example_count)
    share = f"{sums.exact_match_count:,} of {sums.example_count:,}; 95 % interval {low:.4f}..{high:.4f}"
    lines = [
        f"macro F1     {sums.macro_f1:.4f}",
        f"micro F1     {sums.micro_f1:.4f}",
        f"exact match  {sums.exact_match:.4f}  ({share})",
        f"loss         {sums.mean_loss:.6g}",
    ]
    return [*lines, *_count_lines({"with NaN": sums.nan_count})]


def _regression_lines(sums: RegressionSums) -> list[str]:
    lines = [f"MSE  {sums.mse:.6g}", f"MAE  {sums.mae:.6g}", f"R²   {sums.r_squared:.6g}"]
    return [*lines, *_count_lines({"not finite": sums.nan_count})]


def _count_lines(counts: Mapping[str, int]) -> list[str]:
    return [f"{title}: {count:,}" for title, count in counts.items() if count]


def _class_rows(classes: Sequence[ClassFigures], names: Sequence[str]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    named = list(zip(_known(names, len(classes)), classes, strict=True))
    if len(named) > _SHOWN_CLASSES:
        named = sorted((pair for pair in named if pair[1].example_count), key=lambda pair: pair[1].recall)
    for name, each in named[:_SHOWN_CLASSES]:
        low, high = each.recall_interval
        between = f"{low:.4f}..{high:.4f}" if each.example_count else "none"
        rows.append([name, f"{each.example_count:,}", _share(each.recall), between, _share(each.precision)])
    return ("class", "examples", "recall", "95 % interval", "precision"), rows


def _class_documents(classes: Sequence[ClassFigures], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, **asdict(each), "recall": each.recall, "precision": each.precision}
        for name, each in zip(_known(names, len(classes)), classes, strict=True)
    ]


def _label_rows(sums: MultiLabelSums, names: Sequence[str]) -> tuple[Sequence[str], list[list[str]]]:
    known = _known(names, len(sums.f1_scores))
    figures = zip(known, sums.f1_scores, sums.precisions, sums.recalls, strict=True)
    rows = [[name, *(f"{value:.4f}" for value in values)] for name, *values in figures]
    return ("class", "F1", "precision", "recall"), rows


def _share(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.4f}"


def _known(names: Sequence[str], count: int) -> list[str]:
    """A manifest that this client cannot read leaves the classes their numbers."""
    return [printable(name) for name in names] if len(names) == count else [str(index) for index in range(count)]
