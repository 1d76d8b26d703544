"""Sums from messages: what Evaluate and CompareVersions answered, as the client's own values. Pure."""

from __future__ import annotations

from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_client.comparison import Comparison
from fitserve_client.errors import InternalError
from fitserve_client.evaluation import Evaluation
from fitserve_contract.pairing import PairedSums
from fitserve_contract.sums import (
    ClassificationSums,
    ExactSum,
    MultiLabelSums,
    RegressionSums,
    Sums,
    TokenClassificationSums,
)


def evaluation_of(response: inference_pb2.EvaluateResponse) -> Evaluation:
    """Reads an answer to Evaluate; raises as `sums_of`."""
    return Evaluation(response.model_name, response.model_version, sums_of(response), 1)


def comparison_of(response: inference_pb2.CompareVersionsResponse, start: int = 0) -> Comparison:
    """Reads an answer to CompareVersions.

    Args:
        response: The answer.
        start: What the first example of the request is called in the data set that it was cut from.

    Raises:
        InternalError: the answer has sums that this client does not know.
    """
    paired = response.paired
    sums = PairedSums(
        example_count=paired.example_count,
        both_count=paired.both_count,
        first_only_count=paired.first_only_count,
        second_only_count=paired.second_only_count,
        neither_count=paired.neither_count,
        difference_count=paired.difference_count,
        difference_indices=tuple(start + index for index in paired.difference_indices),
        first_losses=tuple(paired.first_losses),
        second_losses=tuple(paired.second_losses),
    )
    return Comparison(evaluation_of(response.first), evaluation_of(response.second), sums)


def sums_of(response: inference_pb2.EvaluateResponse) -> Sums:
    """Reads the sums of an answer to Evaluate.

    Raises:
        InternalError: the answer has none that this client knows.
    """
    kind = response.WhichOneof("sums")
    if kind == "classification":
        return _classification_of(response.classification)
    if kind == "token_classification":
        return _token_classification_of(response.token_classification)
    if kind == "multi_label":
        return _multi_label_of(response.multi_label)
    if kind == "regression":
        return _regression_of(response.regression)
    raise InternalError(
        "answer: expected sums of classification, token_classification, multi_label or regression, got none of them; a "
        "newer server may have others: update the client"
    )


def _exact(message: tensor_pb2.ExactSum) -> ExactSum:
    try:
        return ExactSum(int(message.units), message.fraction_bits)
    except ValueError:
        raise InternalError(f"answer: expected an exact sum as an integer, got '{message.units[:40]}'") from None


def _classification_of(message: inference_pb2.ClassificationSums) -> ClassificationSums:
    return ClassificationSums(
        example_count=message.example_count,
        correct_count=message.correct_count,
        loss=_exact(message.loss),
        tie_count=message.tie_count,
        nan_count=message.nan_count,
        confusion_counts=tuple(message.confusion_counts),
        top_counts=tuple(message.top_counts),
        bin_counts=tuple(each.example_count for each in message.calibration_bins),
        bin_correct_counts=tuple(each.correct_count for each in message.calibration_bins),
        bin_confidences=tuple(_exact(each.confidence) for each in message.calibration_bins),
        true_positive_counts=tuple(message.true_positive_counts),
        false_positive_counts=tuple(message.false_positive_counts),
        false_negative_counts=tuple(message.false_negative_counts),
    )


def _token_classification_of(message: inference_pb2.TokenClassificationSums) -> TokenClassificationSums:
    return TokenClassificationSums(
        example_count=message.example_count,
        exact_match_count=message.exact_match_count,
        positions=_classification_of(message.positions),
    )


def _multi_label_of(message: inference_pb2.MultiLabelSums) -> MultiLabelSums:
    return MultiLabelSums(
        example_count=message.example_count,
        exact_match_count=message.exact_match_count,
        true_positive_counts=tuple(message.true_positive_counts),
        false_positive_counts=tuple(message.false_positive_counts),
        false_negative_counts=tuple(message.false_negative_counts),
        loss=_exact(message.loss),
        nan_count=message.nan_count,
    )


def _regression_of(message: inference_pb2.RegressionSums) -> RegressionSums:
    return RegressionSums(
        example_count=message.example_count,
        value_count=message.value_count,
        squared_error=_exact(message.squared_error),
        absolute_error=_exact(message.absolute_error),
        label=_exact(message.label),
        label_squared=_exact(message.label_squared),
        nan_count=message.nan_count,
    )
