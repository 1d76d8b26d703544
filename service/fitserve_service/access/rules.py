"""Who may call each method, by the descriptors: the option `method_access` of our services, a table for others'.

A method that has no rule is denied to everybody, so that a new one is closed until somebody has decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fitserve.access.v1 import access_pb2
from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve_oip.pool import private_pool
from fitserve_service.messages import parse_counted, parse_fields


class Scope(StrEnum):
    """What a method asks of a credential."""

    OPEN = "open"
    """Nothing, as long as no model is named: is the server there, does it take requests?"""
    DESCRIBE = "describe"
    """Any credential."""
    INFER = "infer"
    EVALUATE = "evaluate"
    CONTROL = "control"


GRANTED: Final = (Scope.INFER, Scope.EVALUATE, Scope.CONTROL)
"""What a credential can be good for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call one method, and where it names models.

    Args:
        scope: What it asks.
        request: Class of its requests.
        response: Class of its responses.
        model_fields: Paths in the request, as `model.name`, of names of models.
        listed_field: Path in the response of what is listed by model; empty: none.
        is_about_no_model: It neither names nor lists models.
    """

    scope: Scope
    request: type[Message]
    response: type[Message]
    model_fields: tuple[str, ...] = ()
    listed_field: str = ""
    is_about_no_model: bool = False

    def models(self, message: bytes) -> list[str]:
        """Returns the names of models in a request, in the words of the very parser that the method uses.

        Only the fields with the names are parsed: this happens on the loop, before anything else is counted.

        Raises:
            ServiceError: MALFORMED_MESSAGE or TOO_LARGE.
        """
        if not self.model_fields:
            return []
        fields = self.request.DESCRIPTOR.fields_by_name
        numbers = {fields[path.partition(".")[0]].number for path in self.model_fields}
        request = parse_fields(self.request, message, numbers)
        return [_at(request, path) for path in self.model_fields]

    def only(self, message: bytes, models: frozenset[str]) -> bytes:
        """Leaves out of a response what it lists of other models."""
        response = parse_counted(self.response, message)
        listed: Any = getattr(response, self.listed_field)
        if isinstance(listed, Mapping):
            others: list[Any] = [name for name in listed if name and name not in models]  # "" is the server
        else:
            others = [index for index, entry in reversed(list(enumerate(listed))) if entry.name not in models]
        for other in others:
            del listed[other]
        return response.SerializeToString()


def rules_of(methods: Iterable[str]) -> dict[str, Rule]:
    """Gives the rules of methods, by their full names `/package.Service/Method`; those without one are left out."""
    known = dict(_all_rules())
    return {name: known[name] for name in methods if name in known}


def _all_rules() -> Iterator[tuple[str, Rule]]:
    for file in (control_pb2.DESCRIPTOR, inference_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            yield from _own_rules(service)
    for name, facts in _OTHERS.items():
        service = private_pool().FindServiceByName(name)
        for method, fact in facts.items():
            yield f"/{name}/{method}", _rule(service.methods_by_name[method], **fact)


def _own_rules(service: ServiceDescriptor) -> Iterator[tuple[str, Rule]]:
    for method in service.methods:
        options: Any = method.GetOptions()
        access = options.Extensions[access_pb2.method_access]
        scope = _SCOPES.get(access.scope)
        if scope is not None:
            fields = tuple(access.model_fields)
            rule = _rule(method, scope=scope, model_fields=fields, listed_field=access.listed_field)
            yield f"/{service.full_name}/{method.name}", rule


def _rule(method: MethodDescriptor, **facts: Any) -> Rule:
    return Rule(request=GetMessageClass(method.input_type), response=GetMessageClass(method.output_type), **facts)


def _at(message: Message, path: str) -> str:
    value: Any = message
    for part in path.split("."):
        value = getattr(value, part)
    return str(value)


_SCOPES: Final = {
    access_pb2.SCOPE_DESCRIBE: Scope.DESCRIBE,
    access_pb2.SCOPE_INFER: Scope.INFER,
    access_pb2.SCOPE_EVALUATE: Scope.EVALUATE,
    access_pb2.SCOPE_CONTROL: Scope.CONTROL,
}

_OPEN: Final = {"scope": Scope.OPEN, "is_about_no_model": True}
_GENERAL: Final = {"scope": Scope.DESCRIBE, "is_about_no_model": True}


def _naming(scope: Scope, field: str) -> dict[str, Any]:
    return {"scope": scope, "model_fields": (field,)}


_OTHERS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "inference.GRPCInferenceService": {
        "ServerLive": _OPEN,
        "ServerReady": _OPEN,
        "ServerMetadata": _GENERAL,
        "ModelReady": _naming(Scope.DESCRIBE, "name"),
        "ModelMetadata": _naming(Scope.DESCRIBE, "name"),
        "ModelConfig": _naming(Scope.DESCRIBE, "name"),
        "ModelStatistics": {"scope": Scope.DESCRIBE, "model_fields": ("name",), "listed_field": "model_stats"},
        "RepositoryIndex": {"scope": Scope.DESCRIBE, "listed_field": "models"},
        "ModelInfer": _naming(Scope.INFER, "model_name"),
        "ModelStreamInfer": _naming(Scope.INFER, "model_name"),
        "RepositoryModelLoad": _naming(Scope.CONTROL, "model_name"),
        "RepositoryModelUnload": _naming(Scope.CONTROL, "model_name"),
    },
    "grpc.health.v1.Health": {
        "Check": _naming(Scope.OPEN, "service"),
        "Watch": _naming(Scope.OPEN, "service"),
        "List": {"scope": Scope.DESCRIBE, "listed_field": "statuses"},
    },
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": _GENERAL},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _GENERAL},
}
"""Protocols of others, whose files are not ours to annotate."""
