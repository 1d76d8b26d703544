"""Errors that a caller of the client meets: one class per gRPC code, each with the server's reason and facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that carries `google.rpc.Status`. Source: gRPC, richer error model."""

DOMAIN: Final = "fitserve"
"""`ErrorInfo.domain` of the service's errors."""

INVALID_INPUT: Final = "INVALID_INPUT"
INVALID_LABELS: Final = "INVALID_LABELS"
TOO_LARGE: Final = "TOO_LARGE"
NOT_READY: Final = "NOT_READY"


class FitserveError(Exception):
    """A call that was not answered.

    Args:
        code: gRPC code.
        message: Names the thing, what was expected and what was found.
        reason: The service's word for the case, UPPER_SNAKE, for example QUEUE_FULL; "" where none came along.
        metadata: Facts for programs, for example the tensor's name.

    Attributes:
        retry_after_s: When the server says to try again, seconds, as with a quota; None: it says nothing of that.
    """

    retry_after_s: float | None = None
    default_code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})


class InvalidArgumentError(FitserveError, ValueError):
    """The request does not fit the model: an input, its datatype, its shape, an output, a label."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(FitserveError, LookupError):
    """No such model, version or label."""

    default_code = grpc.StatusCode.NOT_FOUND


class FailedPreconditionError(FitserveError):
    """The model cannot do that: it FAILED to load, or declares no task."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class UnavailableError(FitserveError, ConnectionError):
    """No server there, or the version is loading or unloading, or the server drains."""

    default_code = grpc.StatusCode.UNAVAILABLE


class ResourceExhaustedError(FitserveError):
    """Queue full, quota used up, or a message too large."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(FitserveError, TimeoutError):
    """The deadline passed before the answer came."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class CallCancelledError(FitserveError):
    """The call was cancelled on its way, or the client is closed."""

    default_code = grpc.StatusCode.CANCELLED


class AccessError(FitserveError, PermissionError):
    """No or a wrong token, or one without the scope."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class InternalError(FitserveError):
    """The server failed; the message carries the incident id that its log has too."""

    default_code = grpc.StatusCode.INTERNAL


class FileError(ValueError):
    """A file that holds no examples for the model; the message names it, what was expected and what was found."""


_CLASSES: Final[dict[grpc.StatusCode, type[FitserveError]]] = {
    **{
        error.default_code: error
        for error in (
            InvalidArgumentError,
            NotFoundError,
            FailedPreconditionError,
            UnavailableError,
            ResourceExhaustedError,
            DeadlineExceededError,
            CallCancelledError,
            AccessError,
            InternalError,
        )
    },
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
}


def error_of(
    code: grpc.StatusCode, details: str | None, trailing: Iterable[tuple[str, str | bytes]] | None
) -> FitserveError:
    """Makes the error that a failed call stands for.

    Args:
        code: gRPC code.
        details: grpc-message of the call.
        trailing: Trailing metadata; where it carries a `google.rpc.Status`, reason and facts are read from it.
    """
    values = [value for key, value in trailing or () if key == DETAILS_KEY and isinstance(value, bytes)]
    details_found = [detail for value in values for detail in _details(value)]
    info = _error_info(details_found)
    message, reason = details or code.name, info.reason
    if not reason and code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        reason = TOO_LARGE
    error = _CLASSES.get(code, FitserveError)(message, reason=reason, metadata=info.metadata, code=code)
    error.retry_after_s = _retry_after_s(details_found) if reason else None
    return error


def _error_info(details: Iterable[any_pb2.Any]) -> error_details_pb2.ErrorInfo:
    """Finds the service's ErrorInfo; an empty one where none came, or where it cannot be read."""
    found = error_details_pb2.ErrorInfo()
    for detail in details:
        if detail.Is(found.DESCRIPTOR) and _is_unpacked(detail, found) and found.domain == DOMAIN:
            return found
    return error_details_pb2.ErrorInfo()


def _retry_after_s(details: Iterable[any_pb2.Any]) -> float | None:
    found = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Is(found.DESCRIPTOR) and _is_unpacked(detail, found):
            delay_s: float = found.retry_delay.seconds + found.retry_delay.nanos / 1e9
            return delay_s
    return None


def _details(value: bytes) -> list[any_pb2.Any]:
    try:
        return list(status_pb2.Status.FromString(value).details)
    except DecodeError:
        return []


def _is_unpacked(detail: any_pb2.Any, into: Message) -> bool:
    try:
        return bool(detail.Unpack(into))
    except DecodeError:
        return False
