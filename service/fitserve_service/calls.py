"""The seam between transports and methods: a method sees a call, never grpc; a transport sees bytes, never a message.

Everything here happens on the transport's one loop thread; `Transport.post` is the only way in from another thread.
A method answers each call exactly once, at once or later, and takes bytes so that a malformed message is its own to
refuse (a deserializer in grpcio would make it INTERNAL).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from fitserve_service.errors import ServiceError

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call comes from.

    Args:
        peer: Address of the other end of the connection, as grpcio writes it: `ipv4:127.0.0.1:40312`.
        identities: Names in the certificate that the caller has shown and TLS has checked; none without one.
    """

    peer: str
    identities: tuple[str, ...] = ()


class Call(Protocol):
    """What unary and streaming calls have in common."""

    method: str
    """Full name, `/package.Service/Method`."""

    deadline_s: float | None
    """When the caller stops waiting, in seconds of `time.monotonic`; None: never."""

    metadata: Metadata
    """What the caller sent along."""

    def origin(self) -> Origin:
        """Tells where the call comes from; looked up when it is asked for, before the call is answered."""
        ...

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Registers what to do when the caller goes away before the answer; at most one, replaces the last.

        A stream's is called once it is over, however it ended.
        """
        ...

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error. A call that is already over ignores it."""
        ...


class UnaryCall(Call, Protocol):
    """One request, one answer."""

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        """Answers. A call that is already over ignores it."""
        ...


class StreamCall(Call, Protocol):
    """Any number of requests and answers."""

    def send(self, message: bytes) -> None:
        """Sends one answer, in order; queued while the caller is slow."""
        ...

    def finish(self) -> None:
        """Ends the call well once everything sent is out."""
        ...


class StreamHandler(Protocol):
    """What a streaming method makes of one call."""

    def on_message(self, message: bytes) -> None:
        """Takes the next request. Until a `send` answers it, it is under way, and later ones may be held back."""
        ...

    def on_half_close(self) -> None:
        """The caller will send no more."""
        ...


UnaryMethod: TypeAlias = Callable[[UnaryCall, bytes], None]
"""Raising ServiceError fails the call; any other exception becomes INTERNAL with an incident id."""

OnRefused: TypeAlias = Callable[[Call], None]
"""Is told of a message that does not reach its method, for example because it is too large: it costs all the same.
Raising ServiceError fails the call with that instead."""

StreamMethod: TypeAlias = Callable[[StreamCall], StreamHandler]


@dataclass(frozen=True, slots=True)
class MethodTable:
    """Every method of the port by its full name."""

    unary: Mapping[str, UnaryMethod]
    stream: Mapping[str, StreamMethod]
    on_refused: OnRefused | None = None
    """Told of messages that the transport refuses."""


class Loop(Protocol):
    """The transport's loop thread, as the engine needs it."""

    def post(self, callback: Callable[[], None]) -> None:
        """Runs a callback on the loop thread soon; from any thread."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Runs a callback once the arrivals at hand are all handed to their methods; from the loop thread."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Runs a callback after a delay; from the loop thread."""
        ...
