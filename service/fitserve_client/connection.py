"""Where a client connects to and how, and one generator driven to its end: what both kinds of client share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypedDict, cast

import grpc

from fitserve_client.credentials import AUTHORIZATION, Tls, Token
from fitserve_client.errors import (
    DeadlineExceededError,
    FitserveError,
    InvalidArgumentError,
    UnavailableError,
    error_of,
)
from fitserve_client.messages import Call
from fitserve_client.operations import Operation, Result
from fitserve_client.retry import RetryPolicy

DEFAULT_TARGET: Final = "localhost:8001"
DEFAULT_TIMEOUT_S: Final = 30.0
MAX_MESSAGE_BYTES: Final = 64 << 20
CALLS_IN_FLIGHT: Final = 4
"""Batches of one evaluation that are under way at once."""

POLL_PAUSE_S: Final = 0.1
"""Pause between two looks while waiting for a model."""

_FIRST_RECONNECT_MS: Final = 100
_MAX_RECONNECT_MS: Final = 1000
"""A channel in its own back-off fails calls unsent; it must reconnect faster than the retries run out."""


class ConnectionOptions(TypedDict, total=False):
    """The fields of `Connection` that a client takes by name, each with its default."""

    timeout_s: float
    retry: RetryPolicy
    max_message_bytes: int
    options: Sequence[tuple[str, Any]]
    credentials: grpc.ChannelCredentials | None
    metadata: Sequence[tuple[str, str | bytes]]
    tls: Tls | None
    token: str
    token_file: str | Path | None


@dataclass(frozen=True, slots=True)
class Connection:
    """How to connect.

    Args:
        target: `host:port`, or any gRPC target.
        timeout_s: Deadline of a call that names none, seconds; infinity waits for ever.
        retry: Which failed calls are made again.
        max_message_bytes: Largest message that is sent or taken.
        options: Further gRPC channel options; they win over the client's own.
        credentials: TLS as grpc has it; None: as `tls` says.
        metadata: Sent with every call.
        tls: TLS by files; None is cleartext.
        token: Sent with every call, over TLS alone; empty: none, or that of `token_file`.
        token_file: A file that holds the token; it is read anew when it changes.

    Raises:
        InvalidArgumentError: the timeout is not above 0, or there is a token without TLS.
        FileError: a file of TLS or the token cannot be used.
    """

    target: str = DEFAULT_TARGET
    timeout_s: float = DEFAULT_TIMEOUT_S
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_bytes: int = MAX_MESSAGE_BYTES
    options: Sequence[tuple[str, Any]] = ()
    credentials: grpc.ChannelCredentials | None = None
    metadata: Sequence[tuple[str, str | bytes]] = ()
    tls: Tls | None = None
    token: str = field(default="", repr=False)
    token_file: str | Path | None = None
    _token: Token | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_timeout(self.timeout_s)
        has_token = bool(self.token) or self.token_file is not None
        is_shown = has_token or any(key.lower() == AUTHORIZATION for key, _ in self.metadata)
        if is_shown and self.tls is None and self.credentials is None:
            raise InvalidArgumentError("token: expected TLS with it: in cleartext everybody on the way could read it")
        if has_token:
            object.__setattr__(self, "_token", Token(self.token, file=self.token_file))

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Gives what the channel is secured with; None for cleartext.

        Raises:
            FileError: a file of TLS cannot be read.
        """
        if self.credentials is None and self.tls is not None:
            return self.tls.channel_credentials()
        return self.credentials

    def call_metadata(self, own: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[str, str | bytes], ...]:
        """Gives what goes with a call that begins now: the connection's, and the call's own."""
        return (*self.metadata, *own, *(self._token.metadata() if self._token is not None else ()))

    def channel_options(self) -> list[tuple[str, Any]]:
        """Gives the options of the channel."""
        own = {
            "grpc.max_send_message_length": self.max_message_bytes,
            "grpc.max_receive_message_length": self.max_message_bytes,
            "grpc.initial_reconnect_backoff_ms": _FIRST_RECONNECT_MS,
            "grpc.max_reconnect_backoff_ms": _MAX_RECONNECT_MS,
        }
        return list({**own, **dict(self.options)}.items())

    def error(self, failed: Any) -> FitserveError:
        """Makes the error of a failed grpc call, which says where the server was looked for when none answered."""
        error = error_of(failed.code(), failed.details(), failed.trailing_metadata())
        if isinstance(error, UnavailableError) and not error.reason:
            return UnavailableError(f"server {self.target}: expected an answer, got none: {error.message}")
        if isinstance(error, DeadlineExceededError) and not error.reason:
            return DeadlineExceededError(f"server {self.target}: expected an answer before the deadline, got none")
        return error


def check_timeout(timeout_s: float) -> float:
    """Gives a timeout back.

    Raises:
        InvalidArgumentError: it is not above 0.
    """
    if not timeout_s > 0:
        raise InvalidArgumentError(f"timeout_s: expected more than 0, got {timeout_s}")
    return timeout_s


def grpc_timeout_s(remaining_s: float) -> float | None:
    """Gives the time that remains as grpc takes it: None for ever."""
    return None if math.isinf(remaining_s) else remaining_s


def not_ready_in_time(model: str | None, version: int | None, obstacle: FitserveError) -> DeadlineExceededError:
    """Makes the error of a wait that was in vain, caused by the last obstacle."""
    what = "server" if model is None else f"model '{model}'" + (f" version {version}" if version else "")
    error = DeadlineExceededError(f"{what}: expected to be READY before the deadline, got: {obstacle}")
    error.__cause__ = obstacle
    return error


def more_telling(last: FitserveError | None, found: FitserveError) -> FitserveError:
    """Chooses between the obstacles of two looks: that time ran out in the middle of a look says nothing new."""
    return last if last is not None and isinstance(found, DeadlineExceededError) else found


class Drive(Generic[Result]):
    """Drives one operation: `call` is what to do next, None once `result` stands. Used by one thread or task.

    An error that the operation does not catch leaves through `fail` or `answer`.
    """

    def __init__(self, operation: Operation[Result]) -> None:
        self._operation = operation
        self.call: Call[Any] | None = None
        self._result: Result | None = None
        self.answer(None)

    @property
    def result(self) -> Result:
        """What the operation returned."""
        return cast(Result, self._result)

    def answer(self, response: Any) -> None:
        """Sends the call's answer into the operation."""
        try:
            self.call = self._operation.send(response)
        except StopIteration as stop:
            self.call, self._result = None, stop.value

    def fail(self, error: FitserveError) -> None:
        """Throws the call's error into the operation."""
        try:
            self.call = self._operation.throw(error)
        except StopIteration as stop:
            self.call, self._result = None, stop.value
