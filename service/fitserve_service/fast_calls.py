"""One call on the completion queue, unary or streaming, as a method sees it (`calls.Call`).

A call is told once that it is over, by the event of its receive_close batch; until then it may still hold things of the
core. It gives them up as soon as it has sent its status, because a server cannot shut down while a call is held.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

from fitserve_service import completion_queue as core
from fitserve_service.calls import Call, Loop, Metadata, OnRefused, Origin, StreamHandler, StreamMethod, UnaryMethod
from fitserve_service.errors import ServiceError
from fitserve_service.status import DETAILS_KEY, answering, fail_with, incident, wire_status
from fitserve_service.stream_room import StreamRoom
from fitserve_service.transport import check_request, metadata_error
from fitserve_service.unread_answers import RESOURCE_EXHAUSTED, UnreadAnswers
from fitserve_service.unread_bytes import UnreadBytes, unread_text
from fitserve_service.waiting_calls import WaitingCalls


class _Call:
    """What unary and stream calls have in common; `_core` is None once the status is sent or the caller is gone."""

    __slots__ = ("_core", "_on_cancel", "deadline_s", "metadata", "method")

    def __init__(self, method: str, event: core.Event) -> None:
        self.method = method
        self.metadata: Metadata = event.invocation_metadata
        left_s = core.remaining_s(event)
        self.deadline_s = None if left_s is None else time.monotonic() + left_s
        self._core: core.CoreCall | None = event.call
        self._on_cancel: Callable[[], None] | None = None

    def origin(self) -> Origin:
        """Tells where the call comes from; nothing of it once the call is over."""
        return Origin("") if self._core is None else core.origin_of(self._core)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Registers what to do when the caller goes away before the answer."""
        if self._core is not None:
            self._on_cancel = callback

    def _remaining_s(self) -> float | None:
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    def _closed(self, _: core.Event) -> None:
        callback = self._on_cancel
        self._core = self._on_cancel = None
        if callback is not None:
            callback()

    def _give_up(self) -> core.CoreCall | None:
        held = self._core
        self._core = self._on_cancel = None
        return held


class UnaryCall(_Call):
    """One request, one answer.

    Most are answered in the turn of the loop that they came in, or in the next; only those that are not are watched for
    their end, and kept in the list of those that wait: the transport calls `watch` then.
    """

    __slots__ = ("_is_watched", "_limit", "_loop", "_on_refused", "_run", "_unread", "_waiting")

    def __init__(
        self,
        method: str,
        run: UnaryMethod,
        limit: int,
        event: core.Event,
        unread: UnreadAnswers,
        on_refused: OnRefused | None,
        loop: Loop,
    ) -> None:
        # As the base has it, without a call in between: ten thousand requests a second come by here.
        self.method = method
        self.metadata = event.invocation_metadata
        left_s = core.remaining_s(event)
        self.deadline_s = None if left_s is None else time.monotonic() + left_s
        self._core = event.call
        self._on_cancel = None
        self._run = run
        self._limit = limit
        self._unread = unread
        self._on_refused = on_refused
        self._loop = loop
        self._is_watched = False
        self._waiting: WaitingCalls | None = None
        core.receive_message(event.call, self._received)

    def watch(self, waiting: WaitingCalls) -> None:
        """Waits for the end of a call that is still open, and for its message among others where that has not come."""
        held = self._core
        if held is None or self._is_watched:
            return
        self._is_watched = True
        if self._run is not _has_run:
            self._waiting = waiting
            waiting.add(self)
        core.receive_close(held, self._closed)
        # The others keep theirs no longer than it takes to answer them.
        if (error := metadata_error(self.metadata)) is not None:
            self.metadata = ()
            self.fail(error)

    def reply(self, message: bytes, trailing: Metadata = ()) -> None:
        """Answers. A call that is already over ignores it."""
        held = self._core
        if held is None:
            return
        self._core = self._on_cancel = None
        try:
            core.send_reply(held, message, trailing, self._unread.add(held, len(message)), is_watched=self._is_watched)
        except core.CoreError as error:
            # Some releases have taken half of what they refuse: nothing more can be sent but the end.
            failure = incident(self.method, error)
            core.abort(held, failure.code, failure.message)

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error. A call that is already over ignores it."""
        held = self._give_up()
        if held is not None:
            if not self._is_watched:
                core.receive_close(held, core.ignore)
            _send_error(held, error, True, core.ignore)

    def _received(self, event: core.Event) -> None:
        run, self._run = self._run, _has_run
        if self._waiting is not None:
            self._waiting.remove(self)
        held = self._core
        if held is not None:
            message = core.message_of(event)
            if message is None and not self._is_watched:
                self._look_whether_over(held)
                return
            try:
                if message is None or self.deadline_s is not None or len(message) > self._limit:
                    message = check_request(message, self._limit, self._remaining_s(), self, self._on_refused)
                run(self, message)
            except Exception as error:
                fail_with(self, error)

    def _look_whether_over(self, held: core.CoreCall) -> None:
        """Refuses a call without a message, but one that was reset: floods of them have to cost little."""
        self._is_watched = True
        core.receive_close(held, self._closed)
        # In the next turn: this one may end before the event is due.
        self._loop.call_soon(partial(self._loop.call_soon, self._refuse_empty))

    def _refuse_empty(self) -> None:
        if self._core is not None:
            with answering(self):
                check_request(None, self._limit, self._remaining_s(), self, self._on_refused)


def _has_run(_: Call, __: bytes) -> None:
    raise AssertionError("a unary call has one message")


class StreamCall(_Call):
    """Any number of requests and answers; one message at a time is asked for, and one is being sent.

    The next is not asked for while much is under way; see `StreamRoom`.
    """

    __slots__ = ("_connection", "_handler", "_has_sent", "_is_half_closed", "_is_over", "_is_reading", "_is_sending",
                 "_limit", "_on_end", "_on_refused", "_room", "_unread", "_unsent")  # fmt: skip

    def __init__(
        self,
        method: str,
        limit: int,
        event: core.Event,
        on_end: Callable[[StreamCall], None],
        unread: UnreadBytes,
        on_refused: OnRefused | None,
    ) -> None:
        super().__init__(method, event)
        self._limit = limit
        self._on_end = on_end
        self._on_refused = on_refused
        self._handler: StreamHandler | None = None
        self._connection = core.peer_of(event.call)
        self._unread = unread
        self._room = StreamRoom()
        self._unsent: deque[bytes | ServiceError | None] = deque()
        self._has_sent = self._is_half_closed = self._is_over = self._is_reading = self._is_sending = False
        core.receive_close(event.call, self._closed)

    def begin(self, method: StreamMethod) -> None:
        """Has the method take the call."""
        with answering(self):
            self._handler = method(self)
        self._read()

    def send(self, message: bytes) -> None:
        """Sends one answer, in order; queued while the caller is slow, who is cut off where too much waits."""
        if self._is_over or self._core is None:
            return
        size = len(message)
        if self._room.answered(size) and self._unread.add(self, self._connection, size, self._cut_off):
            self._put(message)
        else:
            self._unread.remove(self, self._connection)
            self._cut_off()

    def finish(self) -> None:
        """Ends the call well once everything sent is out."""
        self._put(None)
        self._is_over = True

    def fail(self, error: ServiceError) -> None:
        """Ends the call with an error once everything sent is out."""
        self._put(error)
        self._is_over = True

    def half_close(self) -> None:
        """Takes no more requests, as if the caller had said so."""
        if self._handler is not None and not self._is_half_closed and not self._is_over:
            self._is_half_closed = True
            with answering(self):
                self._handler.on_half_close()

    def _read(self) -> None:
        if self._is_reading or self._is_half_closed or self._is_over or self._core is None or self._room.is_full:
            return
        self._is_reading = True
        core.receive_message(self._core, self._received)

    def _received(self, event: core.Event) -> None:
        self._is_reading = False
        message = core.message_of(event)
        if self._core is None:
            return
        if message is None:
            self.half_close()
        elif self._handler is not None and not self._is_half_closed and not self._is_over:
            with answering(self):
                check_request(message, self._limit, self._remaining_s(), self, self._on_refused)
                self._room.read(len(message))
                self._handler.on_message(message)
            self._read()

    def _put(self, item: bytes | ServiceError | None) -> None:
        if not self._is_over and self._core is not None:
            self._unsent.append(item)
            self._send_next()

    def _cut_off(self) -> None:
        """Ends the call at once: it has held answers for longest, and others need the memory."""
        self._is_over = True
        self._unsent.clear()
        if self._core is not None:
            core.abort(self._core, RESOURCE_EXHAUSTED, unread_text())

    def _send_next(self) -> None:
        if self._is_sending or not self._unsent or self._core is None:
            return
        item = self._unsent.popleft()
        is_first, self._has_sent, self._is_sending = not self._has_sent, True, True
        if isinstance(item, bytes):
            core.send_message(self._core, item, is_first, self._sent)
        else:
            # `_on_cancel` stays: a stream's method is told of its end, however that comes, by `_closed`.
            held, self._core = self._core, None
            if item is None:
                core.send_status(held, 0, "", (), is_first, core.ignore)
            else:
                _send_error(held, item, is_first, core.ignore)

    def _sent(self, _: core.Event) -> None:
        self._is_sending = False
        self._unread.remove(self, self._connection, self._room.sent())
        self._send_next()
        self._read()

    def _closed(self, event: core.Event) -> None:
        self._is_over = True
        self._unsent.clear()
        self._unread.remove(self, self._connection)
        self._handler = None
        self._on_end(self)
        super()._closed(event)


def refuse(event: core.Event, error: ServiceError) -> None:
    """Answers a call that no method takes."""
    core.receive_close(event.call, core.ignore)
    _send_error(event.call, error, True, core.ignore)


def _send_error(held: core.CoreCall, error: ServiceError, is_first: bool, tag: core.Tag) -> None:
    status = wire_status(error)
    core.send_status(held, status.code, status.message, ((DETAILS_KEY, status.details),), is_first, tag)
