"""Sums as messages of our own API."""

from __future__ import annotations

from fitserve.inference.v1 import inference_pb2 as pb
from fitserve.types.v1 import tensor_pb2
from fitserve_contract.pairing import PairedSums
from fitserve_contract.sums import (
    ClassificationSums,
    ExactSum,
    MultiLabelSums,
    RegressionSums,
    Sums,
    TokenClassificationSums,
)


def evaluate_response(model: str, version: int, scored: Sums) -> pb.EvaluateResponse:
    """Writes what one version's examples came to."""
    response = pb.EvaluateResponse(model_name=model, model_version=version)
    if isinstance(scored, ClassificationSums):
        response.classification.CopyFrom(_classification(scored))
    elif isinstance(scored, TokenClassificationSums):
        response.token_classification.CopyFrom(_token_classification(scored))
    elif isinstance(scored, MultiLabelSums):
        response.multi_label.CopyFrom(_multi_label(scored))
    else:
        response.regression.CopyFrom(_regression(scored))
    return response


def paired_sums(paired: PairedSums) -> pb.PairedSums:
    """Writes what two versions did on the same examples."""
    return pb.PairedSums(
        example_count=paired.example_count,
        both_count=paired.both_count,
        first_only_count=paired.first_only_count,
        second_only_count=paired.second_only_count,
        neither_count=paired.neither_count,
        difference_count=paired.difference_count,
        difference_indices=paired.difference_indices,
        first_losses=paired.first_losses,
        second_losses=paired.second_losses,
    )


def _exact(total: ExactSum) -> tensor_pb2.ExactSum:
    return tensor_pb2.ExactSum(units=str(total.units), fraction_bits=total.fraction_bits)


def _classification(scored: ClassificationSums) -> pb.ClassificationSums:
    bins = zip(scored.bin_counts, scored.bin_correct_counts, scored.bin_confidences, strict=True)
    return pb.ClassificationSums(
        example_count=scored.example_count,
        correct_count=scored.correct_count,
        loss=_exact(scored.loss),
        tie_count=scored.tie_count,
        nan_count=scored.nan_count,
        confusion_counts=scored.confusion_counts,
        top_counts=scored.top_counts,
        calibration_bins=[
            pb.CalibrationBin(example_count=count, correct_count=correct, confidence=_exact(confidence))
            for count, correct, confidence in bins
        ],
        true_positive_counts=scored.true_positive_counts,
        false_positive_counts=scored.false_positive_counts,
        false_negative_counts=scored.false_negative_counts,
    )


def _token_classification(scored: TokenClassificationSums) -> pb.TokenClassificationSums:
    return pb.TokenClassificationSums(
        example_count=scored.example_count,
        exact_match_count=scored.exact_match_count,
        positions=_classification(scored.positions),
    )


def _multi_label(scored: MultiLabelSums) -> pb.MultiLabelSums:
    return pb.MultiLabelSums(
        example_count=scored.example_count,
        exact_match_count=scored.exact_match_count,
        true_positive_counts=scored.true_positive_counts,
        false_positive_counts=scored.false_positive_counts,
        false_negative_counts=scored.false_negative_counts,
        loss=_exact(scored.loss),
        nan_count=scored.nan_count,
    )


def _regression(scored: RegressionSums) -> pb.RegressionSums:
    return pb.RegressionSums(
        example_count=scored.example_count,
        value_count=scored.value_count,
        squared_error=_exact(scored.squared_error),
        absolute_error=_exact(scored.absolute_error),
        label=_exact(scored.label),
        label_squared=_exact(scored.label_squared),
        nan_count=scored.nan_count,
    )
