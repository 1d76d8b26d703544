"""One call on grpc.aio, unary or streaming, as a method sees it (`calls.Call`)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
import grpc.aio

from fitserve_service.calls import Metadata, OnRefused, Origin, StreamHandler, UnaryMethod
from fitserve_service.errors import ServiceError
from fitserve_service.status import DETAILS_KEY, answering, wire_status
from fitserve_service.stream_room import StreamRoom
from fitserve_service.transport import check_request, metadata_error
from fitserve_service.transport_tls import identities_of
from fitserve_service.unread_bytes import UnreadBytes, unread_error
from fitserve_service.waiting_calls import WaitingCalls

_SMALL_BYTES: Final = 4096
"""Unary answers below this are not counted: what grpc.aio keeps for a call is larger."""

_GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

Context: TypeAlias = Any
"""grpc.aio.ServicerContext; its `read` and `write` are of its Cython class alone."""

_Message: TypeAlias = Any
"""Bytes, or grpc.aio.EOF."""


class _Answer(NamedTuple):
    message: bytes
    trailing: Metadata


class _Call:
    """What unary and stream calls have in common; see `calls.Call`."""

    def __init__(self, method: str, context: Context) -> None:
        self.method = method
        self.metadata: Metadata = context.invocation_metadata() or ()
        self.remaining_s: float | None = context.time_remaining()
        self.deadline_s = None if self.remaining_s is None else time.monotonic() + self.remaining_s
        self._on_cancel: Callable[[], None] | None = None
        self._context = context

    def origin(self) -> Origin:
        return Origin(self._context.peer(), identities_of(self._context.auth_context()))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel = callback

    def cancelled(self) -> None:
        callback, self._on_cancel = self._on_cancel, None
        if callback is not None:
            callback()


class StockUnary(_Call):
    """One request, one answer."""

    def __init__(self, method: str, context: Context) -> None:
        super().__init__(method, context)
        self.outcome: asyncio.Future[_Answer | ServiceError] = asyncio.get_running_loop().create_future()
        self.reader: asyncio.Task[Any] | None = None

    def on_cancel(self, callback: Callable[[], None]) -> None:
        # Answered calls keep no order: that would be a cycle, with the lease and the inputs in it.
        if not self.outcome.done():
            self._on_cancel = callback

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        if not self.outcome.done():
            self._on_cancel = None
            self.outcome.set_result(_Answer(message, trailing))

    def fail(self, error: ServiceError) -> None:
        if not self.outcome.done():
            self._on_cancel = None
            self.outcome.set_result(error)
            if self.reader is not None:
                self.reader.cancel()


async def _first_message(call: StockUnary, context: Context, waiting: WaitingCalls) -> _Message:
    """Waits for a message, or for the call to be given up: then there is none, and the outcome is there."""
    call.reader = asyncio.current_task()
    waiting.add(call)
    try:
        return await context.read()
    except asyncio.CancelledError:
        if call.reader is None or not call.outcome.done():
            raise
        call.reader.uncancel()
        return None
    finally:
        call.reader = None
        waiting.remove(call)


async def run_unary(
    method: UnaryMethod,
    name: str,
    limit: int,
    waiting: WaitingCalls,
    unread: UnreadBytes,
    on_refused: OnRefused | None,
    _: object,
    context: Context,
) -> bytes:
    call = StockUnary(name, context)
    if try_refuse_metadata(call, context):
        return b""
    message = await _first_message(call, context, waiting)
    with answering(call):
        if not call.outcome.done():
            is_missing = message is grpc.aio.EOF  # type: ignore[attr-defined]
            method(call, check_request(None if is_missing else message, limit, call.remaining_s, call, on_refused))
    # Else it is kept until the answer is out, and by the traceback of an abort until the collector comes by.
    del message
    try:
        outcome = await call.outcome
    except asyncio.CancelledError:
        call.cancelled()
        raise
    if isinstance(outcome, _Answer) and len(outcome.message) >= _SMALL_BYTES:
        outcome = _kept(outcome, context, unread)
    if isinstance(outcome, ServiceError):
        await abort(context, outcome)
        raise AssertionError("abort always raises")
    if outcome.trailing:
        context.set_trailing_metadata(tuple(outcome.trailing))
    return outcome.message


def _kept(answer: _Answer, context: Context, unread: UnreadBytes) -> _Answer | ServiceError:
    """Counts an answer until it is out, or gives the error to send in its place: grpc.aio ends no call that is sent."""
    connection, size = context.peer(), len(answer.message)
    if not unread.has_room(connection, size):
        return unread_error()
    holder = object()
    unread.add(holder, connection, size)
    # grpc.aio calls it once the batch with the answer is through, or the call is over.
    context.add_done_callback(lambda _: unread.remove(holder, connection))
    return answer


class StockStream(_Call):
    """Any number of requests and answers; not read from while much is under way, see `StreamRoom`."""

    handler: StreamHandler | None = None

    def __init__(self, method: str, context: Context, unread: UnreadBytes, on_refused: OnRefused | None) -> None:
        super().__init__(method, context)
        self._on_refused = on_refused
        self._connection: str = context.peer()
        self._unread = unread
        self._room = StreamRoom()
        self._unsent: deque[bytes | ServiceError | None] = deque()
        self._has_unsent = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_over = False
        self._is_half_closed = False

    def send(self, message: bytes) -> None:
        if self._is_over:
            return
        size = len(message)
        is_taken = self._unread.has_room(self._connection, size) and self._room.answered(size)
        if is_taken and self._unread.add(self, self._connection, size):
            self._put(message)
        else:
            # What grpc.aio has begun to send stays until the call is over.
            waiting = sum(len(item) for item in self._unsent if isinstance(item, bytes))
            self._unread.remove(self, self._connection, waiting)
            self._unsent.clear()
            self.fail(unread_error())

    def finish(self) -> None:
        self._put(None)
        self._is_over = True

    def fail(self, error: ServiceError) -> None:
        self._put(error)
        self._is_over = True

    def half_close(self) -> None:
        if self.handler is not None and not self._is_half_closed and not self._is_over:
            self._is_half_closed = True
            with answering(self):
                self.handler.on_half_close()

    async def read_all(self, limit: int) -> None:
        """Hands the caller's messages to the handler until there are no more."""
        while not (self._is_over or self._is_half_closed):
            await self._has_room.wait()
            message = await self._context.read()
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                return self.half_close()
            if self.handler is None or self._is_half_closed:
                return None
            with answering(self):
                check_request(message, limit, self.remaining_s, self, self._on_refused)
                self._room.read(len(message))
                self.handler.on_message(message)
            self._look_for_room()
        return None

    async def write_all(self) -> None:
        """Sends what the handler answers until it ends the call."""
        while True:
            await self._has_unsent.wait()
            while self._unsent:
                item = self._unsent.popleft()
                if item is None:
                    return
                if isinstance(item, ServiceError):
                    await abort(self._context, item)
                else:
                    await self._context.write(item)
                    self._unread.remove(self, self._connection, self._room.sent())
                    self._look_for_room()
            self._has_unsent.clear()

    def forget_unread(self) -> None:
        """Counts nothing of this call any more: it is over."""
        self._unread.remove(self, self._connection)

    def _look_for_room(self) -> None:
        if self._room.is_full:
            self._has_room.clear()
        else:
            self._has_room.set()

    def _put(self, item: bytes | ServiceError | None) -> None:
        if self._is_over:
            return
        self._unsent.append(item)
        self._has_unsent.set()
        self._look_for_room()


def try_refuse_metadata(call: StockUnary | StockStream, context: Context) -> bool:
    """Has a call with too much metadata end with an error once its handler returns; tells whether it has.

    An abort's traceback would keep the metadata until the collector comes by.
    """
    error = metadata_error(call.metadata)
    if error is None:
        return False
    call.metadata = ()
    status = wire_status(error)
    context.set_code(_GRPC_CODES[status.code])
    context.set_details(status.message)
    context.set_trailing_metadata(((DETAILS_KEY, status.details),))
    return True


async def abort(context: Context, error: ServiceError) -> None:
    """Ends a call with an error; always raises grpc.aio's own exception for that."""
    status = wire_status(error)
    trailing = ((DETAILS_KEY, status.details),)
    ending: Awaitable[None] = context.abort(_GRPC_CODES[status.code], status.message, trailing)
    await ending
