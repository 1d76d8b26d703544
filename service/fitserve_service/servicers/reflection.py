"""grpc.reflection v1 and v1alpha over everything on the port; the two differ in the package's name alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve_oip.pool import descriptor_set
from fitserve_oip.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)
from fitserve_service.calls import StreamCall, StreamMethod
from fitserve_service.errors import Code, Reason, ServiceError
from fitserve_service.messages import parse

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_MAX_REQUEST_BYTES: Final = 4096
"""Longer requests name nothing that is here, and an answer repeats its request twice."""


class ReflectionServicer:
    """Answers reflection. Lives on the loop thread."""

    def __init__(self, services: Iterable[str]) -> None:
        """Reflects services.

        Args:
            services: Full names of the other services on the port; reflection itself is added.
        """
        self._services = sorted({*services, *SERVICES})
        self._files: dict[str, list[bytes]] = {}
        """Serialized files by name, each with what it imports; as many as there are on the port."""

    def stream(self) -> Mapping[str, StreamMethod]:
        """Gives the streaming methods by full name."""
        return {f"/{service}/ServerReflectionInfo": self.info for service in SERVICES}

    def info(self, call: StreamCall) -> _Conversation:
        """Answers each request of a stream."""
        return _Conversation(self, call)

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """Answers one request; what is not there is an error in the answer, not of the stream."""
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(response, request)
        except KeyError:
            response.error_response.CopyFrom(ErrorResponse(error_code=Code.NOT_FOUND, error_message="not found"))
        return response

    def _fill(self, response: ServerReflectionResponse, request: ServerReflectionRequest) -> None:
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            names = [ServiceResponse(name=name) for name in self._services]
            response.list_services_response.CopyFrom(ListServiceResponse(service=names))
        elif kind == "all_extension_numbers_of_type":
            self._pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
            numbers = ExtensionNumberResponse(base_type_name=request.all_extension_numbers_of_type)
            response.all_extension_numbers_response.CopyFrom(numbers)
        elif kind is None:
            text = "expected one of the kinds of request, got none"
            response.error_response.CopyFrom(ErrorResponse(error_code=Code.INVALID_ARGUMENT, error_message=text))
        else:
            file = self._file(kind, request)
            files = self._files.get(file.name)
            if files is None:
                files = self._files[file.name] = _with_imports(file)
            response.file_descriptor_response.CopyFrom(FileDescriptorResponse(file_descriptor_proto=files))

    def _file(self, kind: str, request: ServerReflectionRequest) -> FileDescriptor:
        if kind == "file_by_filename":
            found = self._pool.FindFileByName(request.file_by_filename)
        elif kind == "file_containing_symbol":
            found = self._pool.FindFileContainingSymbol(request.file_containing_symbol)
        else:
            # No message on the port is extensible but descriptor.proto's options, which tools know themselves.
            raise KeyError(kind)
        file: FileDescriptor = found
        return file

    @cached_property
    def _pool(self) -> DescriptorPool:
        """Every file on the port in one pool: ours from the default pool, the others' from the private one."""
        pool = DescriptorPool()
        added: set[str] = set()
        for module in (control_pb2, inference_pb2):
            _add(pool, module.DESCRIPTOR, added)
        for file in descriptor_set().file:
            pool.Add(file)
        return pool


class _Conversation:
    """One stream."""

    def __init__(self, servicer: ReflectionServicer, call: StreamCall) -> None:
        self._servicer = servicer
        self._call = call

    def on_message(self, message: bytes) -> None:
        """Answers the next request.

        Raises:
            ServiceError: MALFORMED_MESSAGE or TOO_LARGE.
        """
        if len(message) > _MAX_REQUEST_BYTES:
            text = f"request: expected at most {_MAX_REQUEST_BYTES} bytes with a name, got {len(message)}"
            raise ServiceError(Reason.TOO_LARGE, text)
        request = parse(ServerReflectionRequest, message)
        self._call.send(self._servicer.answer(request).SerializeToString())

    def on_half_close(self) -> None:
        """Ends the stream: every request is answered."""
        self._call.finish()


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """Adds a file after what it imports."""
    if file.name in added:
        return
    added.add(file.name)
    for imported in file.dependencies:
        _add(pool, imported, added)
    pool.Add(_proto(file))


def _with_imports(file: FileDescriptor) -> list[bytes]:
    """Serializes a file and everything it imports, the file itself first."""
    found: dict[str, FileDescriptor] = {}
    waiting = [file]
    while waiting:
        next_file = waiting.pop(0)
        if next_file.name not in found:
            found[next_file.name] = next_file
            waiting += next_file.dependencies
    return [_proto(each).SerializeToString() for each in found.values()]


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto
