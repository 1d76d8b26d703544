from fitserve.types.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("model", "inputs", "labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    model: _tensor_pb2.ModelSpec
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    labels: _tensor_pb2.Tensor
    def __init__(self, model: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("model_name", "model_version", "classification", "multi_label", "regression")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    classification: ClassificationSums
    multi_label: MultiLabelSums
    regression: RegressionSums
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., classification: _Optional[_Union[ClassificationSums, _Mapping]] = ..., multi_label: _Optional[_Union[MultiLabelSums, _Mapping]] = ..., regression: _Optional[_Union[RegressionSums, _Mapping]] = ...) -> None: ...

class ClassificationSums(_message.Message):
    __slots__ = ("example_count", "correct_count", "loss", "tie_count", "nan_count")
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CORRECT_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TIE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    example_count: int
    correct_count: int
    loss: _tensor_pb2.ExactSum
    tie_count: int
    nan_count: int
    def __init__(self, example_count: _Optional[int] = ..., correct_count: _Optional[int] = ..., loss: _Optional[_Union[_tensor_pb2.ExactSum, _Mapping]] = ..., tie_count: _Optional[int] = ..., nan_count: _Optional[int] = ...) -> None: ...

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
