"""Errors as they travel: `google.rpc.Status` with one `ErrorInfo`, and `RetryInfo` where it is known when to try again.

An exception that nobody foresaw is told as an incident id.
"""

from __future__ import annotations

import logging
import secrets
from types import TracebackType
from typing import Final, NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from fitserve_service.calls import Call
from fitserve_service.errors import DOMAIN, Reason, ServiceError

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that holds the serialized Status. Source: grpc/doc, "richer error model"."""

MAX_MESSAGE_BYTES: Final = 1024
"""Longer texts are cut. A byte of text is three in the header (percent-encoding) and one more in the details, and above
8 KiB of metadata a client refuses answers, at random and the more often the longer they are."""

_log = logging.getLogger(__name__)


class WireStatus(NamedTuple):
    """An error as a transport sends it."""

    code: int
    message: str
    details: bytes


def wire_status(error: ServiceError) -> WireStatus:
    """Gives an error's code, its text, and the serialized `google.rpc.Status` for `DETAILS_KEY`."""
    message = _cut(error.message)
    info = ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, 128)
    status = Status(code=int(error.code), message=message, details=[_packed(info)])
    if error.retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.append(_packed(retry))
    return WireStatus(int(error.code), message, status.SerializeToString())


def incident(method: str, exception: BaseException) -> ServiceError:
    """Logs an exception nobody foresaw and gives the error for the caller, which holds only the incident's id."""
    number = secrets.token_hex(8)
    _log.error("incident %s in %s", number, method, exc_info=exception, extra={"incident": number, "method": method})
    text = f"internal error, incident {number}: the server's log has the details under this id"
    return ServiceError(Reason.INTERNAL, text, incident=number)


def fail_with(call: Call, exception: Exception) -> None:
    """Fails a call: with a ServiceError as it is, with anything else as an incident."""
    if isinstance(exception, ServiceError):
        # Its traceback keeps the frames that it came through alive, with the message and what was read of it.
        call.fail(exception.with_traceback(None))
    else:
        call.fail(incident(call.method, exception))


class answering:
    """Fails a call with whatever its block raises: a ServiceError as it is, anything else as an incident."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(exception, Exception):
            return False
        fail_with(self._call, exception)
        return True


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _cut(text: str, limit_bytes: int = MAX_MESSAGE_BYTES) -> str:
    # Lone surrogates cannot be sent as UTF-8.
    clean = text.encode(errors="replace")
    if len(clean) <= limit_bytes:
        return clean.decode()
    return f"{clean[: limit_bytes - len('…'.encode())].decode(errors='ignore')}…"
