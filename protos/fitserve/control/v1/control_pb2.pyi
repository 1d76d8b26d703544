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

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_PENDING: _ClassVar[State]
    STATE_LOADING: _ClassVar[State]
    STATE_READY: _ClassVar[State]
    STATE_UNLOADING: _ClassVar[State]
    STATE_UNLOADED: _ClassVar[State]
    STATE_FAILED: _ClassVar[State]

class LabelAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LABEL_ACTION_UNSPECIFIED: _ClassVar[LabelAction]
    LABEL_ACTION_MOVE: _ClassVar[LabelAction]
    LABEL_ACTION_ROLLBACK: _ClassVar[LabelAction]
    LABEL_ACTION_CORRECTION: _ClassVar[LabelAction]
STATE_UNSPECIFIED: State
STATE_PENDING: State
STATE_LOADING: State
STATE_READY: State
STATE_UNLOADING: State
STATE_UNLOADED: State
STATE_FAILED: State
LABEL_ACTION_UNSPECIFIED: LabelAction
LABEL_ACTION_MOVE: LabelAction
LABEL_ACTION_ROLLBACK: LabelAction
LABEL_ACTION_CORRECTION: LabelAction

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape", "axis_names", "has_dynamic_rank", "is_optional")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    AXIS_NAMES_FIELD_NUMBER: _ClassVar[int]
    HAS_DYNAMIC_RANK_FIELD_NUMBER: _ClassVar[int]
    IS_OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    axis_names: _containers.RepeatedScalarFieldContainer[str]
    has_dynamic_rank: bool
    is_optional: bool
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., axis_names: _Optional[_Iterable[str]] = ..., has_dynamic_rank: bool = ..., is_optional: bool = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version", "state", "reason", "is_verified", "execution_provider", "labels", "task", "max_batch_size", "load_ms", "replay_ms", "joining")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IS_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    REPLAY_MS_FIELD_NUMBER: _ClassVar[int]
    JOINING_FIELD_NUMBER: _ClassVar[int]
    version: int
    state: State
    reason: str
    is_verified: bool
    execution_provider: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    task: str
    max_batch_size: int
    load_ms: float
    replay_ms: float
    joining: str
    def __init__(self, version: _Optional[int] = ..., state: _Optional[_Union[State, str]] = ..., reason: _Optional[str] = ..., is_verified: bool = ..., execution_provider: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., task: _Optional[str] = ..., max_batch_size: _Optional[int] = ..., load_ms: _Optional[float] = ..., replay_ms: _Optional[float] = ..., joining: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "versions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    def __init__(self, name: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class GetModelVersionRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _tensor_pb2.ModelSpec
    def __init__(self, model: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ...) -> None: ...

class GetModelVersionResponse(_message.Message):
    __slots__ = ("model_name", "version", "inputs", "outputs", "manifest_json", "class_names", "effective_config_toml")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_CONFIG_TOML_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    version: ModelVersion
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    manifest_json: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    effective_config_toml: str
    def __init__(self, model_name: _Optional[str] = ..., version: _Optional[_Union[ModelVersion, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., manifest_json: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ..., effective_config_toml: _Optional[str] = ...) -> None: ...

class GetModelVersionFileRequest(_message.Message):
    __slots__ = ("model", "file_name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    model: _tensor_pb2.ModelSpec
    file_name: str
    def __init__(self, model: _Optional[_Union[_tensor_pb2.ModelSpec, _Mapping]] = ..., file_name: _Optional[str] = ...) -> None: ...

class GetModelVersionFileResponse(_message.Message):
    __slots__ = ("model_name", "version", "content")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    version: int
    content: bytes
    def __init__(self, model_name: _Optional[str] = ..., version: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LabelMove(_message.Message):
    __slots__ = ("label", "from_version", "to_version", "time", "who", "why", "action", "figures_json")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    FIGURES_JSON_FIELD_NUMBER: _ClassVar[int]
    label: str
    from_version: int
    to_version: int
    time: str
    who: str
    why: str
    action: LabelAction
    figures_json: str
    def __init__(self, label: _Optional[str] = ..., from_version: _Optional[int] = ..., to_version: _Optional[int] = ..., time: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ..., action: _Optional[_Union[LabelAction, str]] = ..., figures_json: _Optional[str] = ...) -> None: ...

class SetLabelRequest(_message.Message):
    __slots__ = ("model", "label", "version", "expected_version", "who", "why", "action", "figures_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    FIGURES_JSON_FIELD_NUMBER: _ClassVar[int]
    model: str
    label: str
    version: int
    expected_version: int
    who: str
    why: str
    action: LabelAction
    figures_json: str
    def __init__(self, model: _Optional[str] = ..., label: _Optional[str] = ..., version: _Optional[int] = ..., expected_version: _Optional[int] = ..., who: _Optional[str] = ..., why: _Optional[str] = ..., action: _Optional[_Union[LabelAction, str]] = ..., figures_json: _Optional[str] = ...) -> None: ...

class SetLabelResponse(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: LabelMove
    def __init__(self, move: _Optional[_Union[LabelMove, _Mapping]] = ...) -> None: ...

class DeleteLabelRequest(_message.Message):
    __slots__ = ("model", "label", "expected_version", "who", "why")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    model: str
    label: str
    expected_version: int
    who: str
    why: str
    def __init__(self, model: _Optional[str] = ..., label: _Optional[str] = ..., expected_version: _Optional[int] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class DeleteLabelResponse(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: LabelMove
    def __init__(self, move: _Optional[_Union[LabelMove, _Mapping]] = ...) -> None: ...

class ListLabelMovesRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListLabelMovesResponse(_message.Message):
    __slots__ = ("labels", "moves", "rollback_versions")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RollbackVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, int]
    moves: _containers.RepeatedCompositeFieldContainer[LabelMove]
    rollback_versions: _containers.ScalarMap[str, int]
    def __init__(self, labels: _Optional[_Mapping[str, int]] = ..., moves: _Optional[_Iterable[_Union[LabelMove, _Mapping]]] = ..., rollback_versions: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Traffic(_message.Message):
    __slots__ = ("canary_share", "shadow_share")
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SHARE_FIELD_NUMBER: _ClassVar[int]
    canary_share: float
    shadow_share: float
    def __init__(self, canary_share: _Optional[float] = ..., shadow_share: _Optional[float] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("model", "traffic")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    model: str
    traffic: Traffic
    def __init__(self, model: _Optional[str] = ..., traffic: _Optional[_Union[Traffic, _Mapping]] = ...) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ("traffic",)
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    traffic: Traffic
    def __init__(self, traffic: _Optional[_Union[Traffic, _Mapping]] = ...) -> None: ...

class GetTrafficRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetTrafficResponse(_message.Message):
    __slots__ = ("traffic",)
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    traffic: Traffic
    def __init__(self, traffic: _Optional[_Union[Traffic, _Mapping]] = ...) -> None: ...

class GetShadowReportRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetShadowReportResponse(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[ShadowReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[ShadowReport, _Mapping]]] = ...) -> None: ...

class ShadowReport(_message.Message):
    __slots__ = ("live_version", "shadow_version", "sampled_count", "compared_count", "failed_count", "dropped_count", "pending_count", "example_count", "agreed_count", "has_agreement", "max_abs_diff", "live_run_ns", "shadow_run_ns", "dropped_by_reason")
    class DroppedByReasonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHADOW_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPARED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGREED_COUNT_FIELD_NUMBER: _ClassVar[int]
    HAS_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFF_FIELD_NUMBER: _ClassVar[int]
    LIVE_RUN_NS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_RUN_NS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BY_REASON_FIELD_NUMBER: _ClassVar[int]
    live_version: int
    shadow_version: int
    sampled_count: int
    compared_count: int
    failed_count: int
    dropped_count: int
    pending_count: int
    example_count: int
    agreed_count: int
    has_agreement: bool
    max_abs_diff: float
    live_run_ns: int
    shadow_run_ns: int
    dropped_by_reason: _containers.ScalarMap[str, int]
    def __init__(self, live_version: _Optional[int] = ..., shadow_version: _Optional[int] = ..., sampled_count: _Optional[int] = ..., compared_count: _Optional[int] = ..., failed_count: _Optional[int] = ..., dropped_count: _Optional[int] = ..., pending_count: _Optional[int] = ..., example_count: _Optional[int] = ..., agreed_count: _Optional[int] = ..., has_agreement: bool = ..., max_abs_diff: _Optional[float] = ..., live_run_ns: _Optional[int] = ..., shadow_run_ns: _Optional[int] = ..., dropped_by_reason: _Optional[_Mapping[str, int]] = ...) -> None: ...
