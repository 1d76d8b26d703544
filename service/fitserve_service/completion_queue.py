"""The one door to grpcio's private core: a server whose completion queue is polled by its owner's thread.

The server object, its port and its credentials come from the public `grpc.server`; only what its serving thread would
do is done here. Nothing of the core is ever used twice: each batch has operations of its own, because the core keeps
pointers into them until the batch's event arrives (a tuple of operations that was reused corrupted memory). The core
keeps operations, tag and call alive until then.

Every tag is a callable that takes its event. Nothing here is thread-safe but `Bell.ring`.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias, cast

import grpc
import grpc._cython.cygrpc as cygrpc

from fitserve_service.calls import Metadata, Origin
from fitserve_service.transport_tls import identities_of

TESTED_FIRST: Final = (1, 80)
TESTED_LAST: Final = (1, 85)
"""The grpcio releases that this module was run on, both included."""

_NO_FLAGS: Final = 0
_PAST: Final = 0
"""A deadline that makes `poll` take what is there and not wait."""

_NEVER: Final = 2**40
"""A time, in seconds since 1970, that no caller waits for: the core says "never" as the end of its clock's time."""

_LOOPBACK: Final = "127.0.0.1"
_BELL_WAIT_S: Final = 5.0
_NOT_TAKEN: Final = "batch: expected to be taken by the core, got its error %d"

# Looked up once: the core's operations are made four times a call.
_ReceiveMessage: Final = cygrpc.ReceiveMessageOperation
_ReceiveClose: Final = cygrpc.ReceiveCloseOnServerOperation
_SendInitialMetadata: Final = cygrpc.SendInitialMetadataOperation
_SendMessage: Final = cygrpc.SendMessageOperation
_SendStatus: Final = cygrpc.SendStatusFromServerOperation

_COMPLETE: Final = cygrpc.CompletionType.operation_complete
_SHUTDOWN: Final = cygrpc.CompletionType.queue_shutdown

Event: TypeAlias = Any
"""A cygrpc event. For a request: `success`, `call`, `call_details` and `invocation_metadata`."""

Tag: TypeAlias = Callable[[Event], None]
CoreCall: TypeAlias = Any
Operations: TypeAlias = tuple[Any, ...]

_log = logging.getLogger(__name__)


class CoreError(Exception):
    """The core refused a batch, or does not behave as this module needs it to."""


def is_tested(version: str) -> bool:
    """Tells whether a grpcio release, for example "1.85.1", is within the window that this module was run on."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return False
    return TESTED_FIRST <= (major, minor) <= TESTED_LAST


def ignore(_: Event) -> None:
    """The tag of a batch whose end nobody waits for."""


def receive_message(call: CoreCall, tag: Tag) -> None:
    """Asks for the call's next message; `message_of` the event has it."""
    error = call.start_server_batch((_ReceiveMessage(_NO_FLAGS),), tag)
    if error:
        raise CoreError(_NOT_TAKEN % error)


def receive_close(call: CoreCall, tag: Tag) -> None:
    """Asks to be told when the call is over; `is_cancelled` of the event says how."""
    _start(call, (_ReceiveClose(_NO_FLAGS),), tag)


def message_of(event: Event) -> bytes | None:
    """Gives the message that came, None where there is none: the caller half-closed or is gone."""
    message: bytes | None = event.batch_operations[0].message()
    return message


def is_cancelled(event: Event) -> bool:
    """Tells whether a call ended before its status was sent."""
    cancelled: bool = event.batch_operations[0].cancelled()
    return cancelled


def remaining_s(event: Event) -> float | None:
    """Gives the time that a requested call has left, in seconds; None: it has no deadline."""
    deadline: float = event.call_details.deadline
    return None if deadline > _NEVER else deadline - time.time()


def origin_of(call: CoreCall) -> Origin:
    """Tells where a call comes from that is not over yet."""
    return Origin(call.peer().decode(errors="replace"), identities_of(cygrpc.auth_context(call) or {}))


def peer_of(call: CoreCall) -> str:
    """Returns the address of the other end of a call's connection; the call is not over yet."""
    peer: str = call.peer().decode(errors="replace")
    return peer


def send_reply(call: CoreCall, message: bytes, trailing: Metadata, tag: Tag, *, is_watched: bool = True) -> None:
    """Sends a unary call's whole answer at once.

    Args:
        call: The call.
        message: Its one answer.
        trailing: Metadata behind it.
        tag: Runs once it is sent.
        is_watched: `receive_close` was asked for; else it is part of this batch, which spares one.

    Raises:
        CoreError: the metadata cannot be sent; the call is still open, for `abort` alone.
    """
    opening, answer = _SendInitialMetadata(None, _NO_FLAGS), _SendMessage(message, _NO_FLAGS)
    status = _SendStatus(trailing, 0, b"", _NO_FLAGS)
    if is_watched:
        _start(call, (opening, answer, status), tag)
    else:
        _start(call, (opening, answer, status, _ReceiveClose(_NO_FLAGS)), tag)


def send_message(call: CoreCall, message: bytes, is_first: bool, tag: Tag) -> None:
    """Sends one of a stream's answers."""
    _start(call, (*_opening(is_first), _SendMessage(message, _NO_FLAGS)), tag)


def send_status(call: CoreCall, code: int, text: str, trailing: Metadata, is_first: bool, tag: Tag) -> None:
    """Ends a call; `is_first` where nothing was sent before."""
    status = _SendStatus(trailing, code, text.encode(), _NO_FLAGS)
    _start(call, (*_opening(is_first), status), tag)


def abort(call: CoreCall, code: int, text: str) -> None:
    """Ends a call at once, whatever was sent of it, without details."""
    call.cancel(code, text)


def _opening(is_first: bool) -> Operations:
    return (_SendInitialMetadata(None, _NO_FLAGS),) if is_first else ()


def _start(call: CoreCall, operations: Operations, tag: Tag) -> None:
    try:
        error = call.start_server_batch(operations, tag)
    except (TypeError, ValueError, UnicodeError) as refused:
        raise CoreError(f"batch: expected operations that the core takes, got {refused}") from None
    if error:
        raise CoreError(_NOT_TAKEN % error)


def _nothing() -> None:
    pass


class CoreServer:
    """A listening server and the queue on which all that happens to it completes.

    Args:
        options: Channel options of grpcio.
    """

    def __init__(self, options: Iterable[tuple[str, int]]) -> None:
        # grpc.server asks for a pool; without its own serving thread nothing is ever submitted to it.
        self._public = cast(Any, grpc.server(ThreadPoolExecutor(1), options=list(options)))
        self._core = self._public._cy_server
        self._queue = self._public._state.completion_queue
        self._poll = self._queue.poll
        self.request: Callable[[], object] = _nothing
        """Asks the core for one more call; nothing before the start, nor once it shuts down."""
        self._is_started = False
        self._is_shutting_down = False
        self.is_down = False
        self.bell = Bell(self._queue)

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Takes a port and gives its number.

        Args:
            address: `host:port`.
            credentials: TLS; None is cleartext.

        Raises:
            RuntimeError: grpcio cannot listen there.
        """
        port: int = (
            self._public.add_insecure_port(address)
            if credentials is None
            else self._public.add_secure_port(address, credentials)
        )
        return port

    def start(self, ahead_count: int, on_request: Tag) -> None:
        """Starts to take calls; `on_request` gets each one's event, of which `success` is False only on shutdown.

        Args:
            ahead_count: Calls to ask the core for ahead, so that arrivals need not wait for the loop.
            on_request: The tag of arriving calls; it calls `request` for each call that it takes.
        """
        self._core.start()
        self.request = partial(self._core.request_call, self._queue, self._queue, on_request)
        self._is_started = True
        for _ in range(ahead_count):
            self.request()

    def gather(self, wait_s: float, most: int) -> bool:
        """Waits for one completion, then runs the tags of all that are there.

        Args:
            wait_s: At most this long.
            most: At most so many, so that a flood of arrivals cannot keep the caller from its other work.

        Returns:
            Whether there was any.
        """
        poll = self._poll
        event = poll(time.time() + wait_s if wait_s > 0 else _PAST)
        if event.completion_type != _COMPLETE:
            return False
        while event.completion_type == _COMPLETE:
            try:
                event.tag(event)
            except Exception:
                # One call's trouble is not the loop's.
                _log.exception("completion queue: a tag failed")
            most -= 1
            if most <= 0:
                break
            event = poll(_PAST)
        return True

    def begin_shutdown(self) -> None:
        """Refuses new calls and connections; `is_down` once all calls have ended and all connections are closed."""
        if self._is_started and not self._is_shutting_down:
            self._is_shutting_down = True
            self.request = _nothing
            self._core.shutdown(self._queue, self._went_down)

    def cancel_all(self) -> None:
        """Cancels what is in flight, after `begin_shutdown`."""
        if self._is_shutting_down and not self.is_down:
            self._core.cancel_all_calls()

    def close(self) -> None:
        """Ends everything at once and frees the server; waits for what the core still has to say."""
        self.begin_shutdown()
        self.cancel_all()
        self.bell.silence()
        while not (self.bell.is_down and (self.is_down or not self._is_started)):
            self.gather(_BELL_WAIT_S, 1)
        self.bell.destroy()
        self._core.destroy()
        self._queue.shutdown()
        while (event := self._poll()).completion_type != _SHUTDOWN:
            _run_tag(event)

    def _went_down(self, _: Event) -> None:
        self.is_down = True


class Bell:
    """Wakes whoever waits on a queue, from any thread.

    The core completes an empty batch at once, on the queue of the call that it was started on. So one call is kept for
    that alone: it comes from a private server on the same queue, which is shut down as soon as it has taken the call.
    Once the call is over, a batch on it neither sends nor receives.
    """

    def __init__(self, queue: Any) -> None:
        self._lock = threading.RLock()  # A signal's handler may ring while the thread that it interrupts does.
        self._call: CoreCall | None = None
        self.is_down = False
        self._server = cygrpc.Server([("grpc.so_reuseport", 0)], False)
        self._server.register_completion_queue(queue)
        port = self._server.add_http2_port(f"{_LOOPBACK}:0".encode())
        self._server.start()
        self._server.request_call(queue, queue, self._take)
        try:
            self._dial(port, queue)
        finally:
            self._server.shutdown(queue, self._went_down)

    def ring(self, tag: Tag) -> None:
        """Has `tag` run on the queue's thread; not after `silence`."""
        with self._lock:
            if self._call is not None:
                self._call.start_server_batch((), tag)

    def silence(self) -> None:
        """Ends the bell: `ring` does nothing from here on."""
        with self._lock:
            self._call = None
        self._server.cancel_all_calls()

    def destroy(self) -> None:
        """Frees the private server, once `is_down`."""
        self._server.destroy()

    def _dial(self, port: int, queue: Any) -> None:
        with socket.create_connection((_LOOPBACK, port), timeout=_BELL_WAIT_S) as caller:
            caller.sendall(_FIRST_CALL)
            until = time.monotonic() + _BELL_WAIT_S
            while self._call is None:
                if time.monotonic() > until:
                    raise CoreError(f"bell: expected a call to itself within {_BELL_WAIT_S} s, got none")
                event = queue.poll(time.time() + 0.1)
                if event.completion_type == _COMPLETE:
                    _run_tag(event)

    def _take(self, event: Event) -> None:
        self._call = event.call if event.success else None

    def _went_down(self, _: Event) -> None:
        self.is_down = True


def _run_tag(event: Event) -> None:
    try:
        event.tag(event)
    except Exception:
        # One call's trouble is not the loop's.
        _log.exception("completion queue: a tag failed")


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


_FIRST_CALL: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(4, 0, 0)
    + _frame(
        1,
        4,
        1,
        _header(b":method", b"POST")
        + _header(b":scheme", b"http")
        + _header(b":path", b"/bell")
        + _header(b":authority", b"localhost")
        + _header(b"te", b"trailers")
        + _header(b"content-type", b"application/grpc"),
    )
)
"""Preface, SETTINGS, and HEADERS that begin a call. Source: RFC 9113, 3.4, 6.2, 6.5; RFC 7541, 6.2.2."""
