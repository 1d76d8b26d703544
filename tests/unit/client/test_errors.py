"""Errors of failed calls: class by code, reason and facts from the status details."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from fitserve_client import errors


def _trailing(reason: str, domain: str = "fitserve", **metadata: str) -> list[tuple[str, str | bytes]]:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    return [("other", "x"), (errors.DETAILS_KEY, status_pb2.Status(code=3, details=[detail]).SerializeToString())]


@pytest.mark.parametrize(
    ("code", "expected", "builtin"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgumentError, ValueError),
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError, LookupError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPreconditionError, Exception),
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError, ConnectionError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError, Exception),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError, TimeoutError),
        (grpc.StatusCode.CANCELLED, errors.CallCancelledError, Exception),
        (grpc.StatusCode.PERMISSION_DENIED, errors.AccessError, PermissionError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.AccessError, PermissionError),
        (grpc.StatusCode.INTERNAL, errors.InternalError, Exception),
        (grpc.StatusCode.DATA_LOSS, errors.FitserveError, Exception),
    ],
)
def test_code_decides_the_class(code, expected, builtin):
    error = errors.error_of(code, "it is so", None)
    assert type(error) is expected
    assert isinstance(error, builtin)
    assert (error.code, str(error), error.message) == (code, "it is so", "it is so")


def test_reason_and_facts_come_from_the_status_details():
    error = errors.error_of(grpc.StatusCode.INVALID_ARGUMENT, "input 'x': …", _trailing("INVALID_INPUT", input="x"))
    assert (error.reason, error.metadata) == ("INVALID_INPUT", {"input": "x"})


@pytest.mark.parametrize(
    "trailing",
    [
        None,
        [],
        [(errors.DETAILS_KEY, b"\xff\xff not a message")],
        [(errors.DETAILS_KEY, "text where bytes belong")],
        _trailing("QUOTA_EXCEEDED", domain="somebody.else"),
    ],
)
def test_details_that_say_nothing_leave_the_reason_empty(trailing):
    error = errors.error_of(grpc.StatusCode.INTERNAL, None, trailing)
    assert (error.reason, error.metadata, error.message) == ("", {}, "INTERNAL")


def test_unreadable_error_info_is_no_error_info():
    detail = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    trailing = [(errors.DETAILS_KEY, status_pb2.Status(details=[detail]).SerializeToString())]
    assert errors.error_of(grpc.StatusCode.INTERNAL, "m", trailing).reason == ""


def test_a_message_too_large_to_send_has_the_servers_reason():
    error = errors.error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "Sent message larger than max (9 vs. 4)", None)
    assert error.reason == errors.TOO_LARGE
