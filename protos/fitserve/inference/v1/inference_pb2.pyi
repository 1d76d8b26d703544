from fitserve.access.v1 import access_pb2 as _access_pb2
from fitserve.types.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dataset(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_UNSPECIFIED: _ClassVar[Dataset]
    DATASET_HELD_OUT: _ClassVar[Dataset]
DATASET_UNSPECIFIED: Dataset
DATASET_HELD_OUT: Dataset

class PredictRequest(_message.Message):
    __slots__ = ("model", "inputs", "outputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    model: _tensor_pb2.ModelSpec
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("model_name", "model_version", "outputs")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("model", "inputs", "labels", "dataset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    model: _tensor_pb2.ModelSpec
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    labels: _tensor_pb2.Tensor
    dataset: Dataset
    def __init__(self, model: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., dataset: _Optional[_Union[Dataset, str]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("model_name", "model_version", "classification", "multi_label", "regression", "token_classification")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    classification: ClassificationSums
    multi_label: MultiLabelSums
    regression: RegressionSums
    token_classification: TokenClassificationSums
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., classification: _Optional[_Union[ClassificationSums, _Mapping]] = ..., multi_label: _Optional[_Union[MultiLabelSums, _Mapping]] = ..., regression: _Optional[_Union[RegressionSums, _Mapping]] = ..., token_classification: _Optional[_Union[TokenClassificationSums, _Mapping]] = ...) -> None: ...

class ClassificationSums(_message.Message):
    __slots__ = ("example_count", "correct_count", "loss", "tie_count", "nan_count", "confusion_counts", "top_counts", "calibration_bins", "true_positive_counts", "false_positive_counts", "false_negative_counts")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CORRECT_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TIE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOP_COUNTS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_BINS_FIELD_NUMBER: _ClassVar[int]
    TRUE_POSITIVE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    FALSE_NEGATIVE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    correct_count: int
    loss: _tensor_pb2.ExactSum
    tie_count: int
    nan_count: int
    confusion_counts: _containers.RepeatedScalarFieldContainer[int]
    top_counts: _containers.RepeatedScalarFieldContainer[int]
    calibration_bins: _containers.RepeatedCompositeFieldContainer[CalibrationBin]
    true_positive_counts: _containers.RepeatedScalarFieldContainer[int]
    false_positive_counts: _containers.RepeatedScalarFieldContainer[int]
    false_negative_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, example_count: _Optional[int] = ..., correct_count: _Optional[int] = ..., loss: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., tie_count: _Optional[int] = ..., nan_count: _Optional[int] = ..., confusion_counts: _Optional[_Iterable[int]] = ..., top_counts: _Optional[_Iterable[int]] = ..., calibration_bins: _Optional[_Iterable[_Union[CalibrationBin, _Mapping]]] = ..., true_positive_counts: _Optional[_Iterable[int]] = ..., false_positive_counts: _Optional[_Iterable[int]] = ..., false_negative_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenClassificationSums(_message.Message):
    __slots__ = ("example_count", "exact_match_count", "positions")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXACT_MATCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    exact_match_count: int
    positions: ClassificationSums
    def __init__(self, example_count: _Optional[int] = ..., exact_match_count: _Optional[int] = ..., positions: _Optional[_Union[ClassificationSums, _Mapping]] = ...) -> None: ...

class CalibrationBin(_message.Message):
    __slots__ = ("example_count", "correct_count", "confidence")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CORRECT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    correct_count: int
    confidence: _tensor_pb2.ExactSum
    def __init__(self, example_count: _Optional[int] = ..., correct_count: _Optional[int] = ..., confidence: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ...) -> None: ...

class MultiLabelSums(_message.Message):
    __slots__ = ("example_count", "exact_match_count", "true_positive_counts", "false_positive_counts", "false_negative_counts", "loss", "nan_count")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXACT_MATCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUE_POSITIVE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    FALSE_NEGATIVE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    NAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    exact_match_count: int
    true_positive_counts: _containers.RepeatedScalarFieldContainer[int]
    false_positive_counts: _containers.RepeatedScalarFieldContainer[int]
    false_negative_counts: _containers.RepeatedScalarFieldContainer[int]
    loss: _tensor_pb2.ExactSum
    nan_count: int
    def __init__(self, example_count: _Optional[int] = ..., exact_match_count: _Optional[int] = ..., true_positive_counts: _Optional[_Iterable[int]] = ..., false_positive_counts: _Optional[_Iterable[int]] = ..., false_negative_counts: _Optional[_Iterable[int]] = ..., loss: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., nan_count: _Optional[int] = ...) -> None: ...

class RegressionSums(_message.Message):
    __slots__ = ("example_count", "value_count", "squared_error", "absolute_error", "label", "label_squared", "nan_count")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    VALUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SQUARED_ERROR_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_ERROR_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_SQUARED_FIELD_NUMBER: _ClassVar[int]
    NAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    value_count: int
    squared_error: _tensor_pb2.ExactSum
    absolute_error: _tensor_pb2.ExactSum
    label: _tensor_pb2.ExactSum
    label_squared: _tensor_pb2.ExactSum
    nan_count: int
    def __init__(self, example_count: _Optional[int] = ..., value_count: _Optional[int] = ..., squared_error: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., absolute_error: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., label: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., label_squared: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., nan_count: _Optional[int] = ...) -> None: ...

class CompareVersionsRequest(_message.Message):
    __slots__ = ("first", "second", "inputs", "labels", "dataset")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    first: _tensor_pb2.ModelSpec
    second: _tensor_pb2.ModelSpec
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    labels: _tensor_pb2.Tensor
    dataset: Dataset
    def __init__(self, first: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ..., second: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., dataset: _Optional[_Union[Dataset, str]] = ...) -> None: ...

class CompareVersionsResponse(_message.Message):
    __slots__ = ("first", "second", "paired")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    PAIRED_FIELD_NUMBER: _ClassVar[int]
    first: EvaluateResponse
    second: EvaluateResponse
    paired: PairedSums
    def __init__(self, first: _Optional[_Union[EvaluateResponse, _Mapping]] = ..., second: _Optional[_Union[EvaluateResponse, _Mapping]] = ..., paired: _Optional[_Union[PairedSums, _Mapping]] = ...) -> None: ...

class PairedSums(_message.Message):
    __slots__ = ("example_count", "both_count", "first_only_count", "second_only_count", "neither_count", "difference_count", "difference_indices", "first_losses", "second_losses")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BOTH_COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_ONLY_COUNT_FIELD_NUMBER: _ClassVar[int]
    SECOND_ONLY_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEITHER_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_INDICES_FIELD_NUMBER: _ClassVar[int]
    FIRST_LOSSES_FIELD_NUMBER: _ClassVar[int]
    SECOND_LOSSES_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    both_count: int
    first_only_count: int
    second_only_count: int
    neither_count: int
    difference_count: int
    difference_indices: _containers.RepeatedScalarFieldContainer[int]
    first_losses: _containers.RepeatedScalarFieldContainer[float]
    second_losses: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, example_count: _Optional[int] = ..., both_count: _Optional[int] = ..., first_only_count: _Optional[int] = ..., second_only_count: _Optional[int] = ..., neither_count: _Optional[int] = ..., difference_count: _Optional[int] = ..., difference_indices: _Optional[_Iterable[int]] = ..., first_losses: _Optional[_Iterable[float]] = ..., second_losses: _Optional[_Iterable[float]] = ...) -> None: ...
