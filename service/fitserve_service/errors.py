"""The one table of errors: which case has which gRPC code and which reason, for every API on the port.

An error is raised where it is noticed and turned into a `google.rpc.Status` with one `ErrorInfo` by the transport; no
other module knows codes.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

DOMAIN = "fitserve"
"""`ErrorInfo.domain` of every error."""


class Code(IntEnum):
    """gRPC status codes. Source: grpc/doc/statuscodes.md."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Reason(StrEnum):
    """`ErrorInfo.reason` of every error, each with its one code in `CODES`."""

    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    INVALID_INPUT = "INVALID_INPUT"
    INVALID_OUTPUT = "INVALID_OUTPUT"
    INVALID_LABELS = "INVALID_LABELS"
    INVALID_VERSION = "INVALID_VERSION"
    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_LABEL = "INVALID_LABEL"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    OPERATOR_FAILED = "OPERATOR_FAILED"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    LABEL_NOT_FOUND = "LABEL_NOT_FOUND"
    LABEL_CONFLICT = "LABEL_CONFLICT"
    REPOSITORY_READ_ONLY = "REPOSITORY_READ_ONLY"
    FILE_NOT_FOUND = "FILE_NOT_FOUND"
    MODEL_FAILED = "MODEL_FAILED"
    LOAD_FAILED = "LOAD_FAILED"
    NO_TASK = "NO_TASK"
    NO_HELD_OUT = "NO_HELD_OUT"
    TASK_MISMATCH = "TASK_MISMATCH"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    QUEUE_FULL = "QUEUE_FULL"
    QUOTA = "QUOTA"
    TOO_LARGE = "TOO_LARGE"
    DEVICE_MEMORY = "DEVICE_MEMORY"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    CALLER_CANCELLED = "CALLER_CANCELLED"
    NOT_AUTHENTICATED = "NOT_AUTHENTICATED"
    NOT_PERMITTED = "NOT_PERMITTED"
    AUDIT_FAILED = "AUDIT_FAILED"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    INTERNAL = "INTERNAL"


CODES: dict[Reason, Code] = {
    Reason.MALFORMED_MESSAGE: Code.INVALID_ARGUMENT,
    Reason.INVALID_INPUT: Code.INVALID_ARGUMENT,
    Reason.INVALID_OUTPUT: Code.INVALID_ARGUMENT,
    Reason.INVALID_LABELS: Code.INVALID_ARGUMENT,
    Reason.INVALID_VERSION: Code.INVALID_ARGUMENT,
    Reason.INVALID_REQUEST: Code.INVALID_ARGUMENT,
    Reason.INVALID_LABEL: Code.INVALID_ARGUMENT,
    Reason.BATCH_TOO_LARGE: Code.INVALID_ARGUMENT,
    Reason.OPERATOR_FAILED: Code.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND: Code.NOT_FOUND,
    Reason.FILE_NOT_FOUND: Code.NOT_FOUND,
    Reason.VERSION_NOT_FOUND: Code.NOT_FOUND,
    Reason.LABEL_NOT_FOUND: Code.NOT_FOUND,
    Reason.LABEL_CONFLICT: Code.ABORTED,
    Reason.REPOSITORY_READ_ONLY: Code.FAILED_PRECONDITION,
    Reason.MODEL_FAILED: Code.FAILED_PRECONDITION,
    Reason.LOAD_FAILED: Code.FAILED_PRECONDITION,
    Reason.NO_TASK: Code.FAILED_PRECONDITION,
    Reason.NO_HELD_OUT: Code.FAILED_PRECONDITION,
    Reason.TASK_MISMATCH: Code.FAILED_PRECONDITION,
    Reason.NOT_READY: Code.UNAVAILABLE,
    Reason.DRAINING: Code.UNAVAILABLE,
    Reason.QUEUE_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.QUOTA: Code.RESOURCE_EXHAUSTED,
    Reason.TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    Reason.DEVICE_MEMORY: Code.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_PASSED: Code.DEADLINE_EXCEEDED,
    Reason.CALLER_CANCELLED: Code.CANCELLED,
    Reason.NOT_AUTHENTICATED: Code.UNAUTHENTICATED,
    Reason.NOT_PERMITTED: Code.PERMISSION_DENIED,
    Reason.AUDIT_FAILED: Code.FAILED_PRECONDITION,
    Reason.UNKNOWN_METHOD: Code.UNIMPLEMENTED,
    Reason.INTERNAL: Code.INTERNAL,
}


class ServiceError(Exception):
    """A case of the table, with the text that the caller may read.

    Args:
        reason: The case; it decides the code.
        message: Names the thing, what was expected and what was found; never the text of an unknown exception.
        metadata: `ErrorInfo.metadata`: facts for programs, for example the tensor's name.

    Attributes:
        retry_after_s: When to try again, seconds, told as `RetryInfo`; None: nothing is known of that.
    """

    retry_after_s: float | None = None

    def __init__(self, reason: Reason, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = CODES[reason]
        self.message = message
        self.metadata = metadata
