from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_UNSPECIFIED: _ClassVar[Scope]
    SCOPE_DESCRIBE: _ClassVar[Scope]
    SCOPE_INFER: _ClassVar[Scope]
    SCOPE_EVALUATE: _ClassVar[Scope]
    SCOPE_CONTROL: _ClassVar[Scope]
SCOPE_UNSPECIFIED: Scope
SCOPE_DESCRIBE: Scope
SCOPE_INFER: Scope
SCOPE_EVALUATE: Scope
SCOPE_CONTROL: Scope
METHOD_ACCESS_FIELD_NUMBER: _ClassVar[int]
method_access: _descriptor.FieldDescriptor

class MethodAccess(_message.Message):
    __slots__ = ("scope", "model_fields", "listed_field")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELDS_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_FIELD_NUMBER: _ClassVar[int]
    scope: Scope
    model_fields: _containers.RepeatedScalarFieldContainer[str]
    listed_field: str
    def __init__(self, scope: _Optional[_Union[Scope, str]] = ..., model_fields: _Optional[_Iterable[str]] = ..., listed_field: _Optional[str] = ...) -> None: ...
