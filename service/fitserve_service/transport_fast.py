"""The transport on grpcio's completion queue: one thread polls it, runs the methods, and does all else that is due.

A turn of the loop takes all that has arrived without waiting for more, hands each request to its method, and then runs
what was asked for with `call_soon`: batching by arrival, which costs no waiting. No thread is ever held by a caller, so
stalled bodies and slow readers cost memory alone, and that is bounded by connection.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from fitserve_service import completion_queue as core
from fitserve_service.calls import MethodTable, OnRefused, StreamMethod, UnaryMethod
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.fast_calls import StreamCall, UnaryCall, refuse
from fitserve_service.listening import ListenError, check_listenable
from fitserve_service.reset_guard import guarding
from fitserve_service.transport import MAX_ENTRIES, TransportOptions, channel_options, metadata_error
from fitserve_service.transport_tls import server_credentials
from fitserve_service.unix_socket import created_privately
from fitserve_service.unread_answers import UnreadAnswers
from fitserve_service.waiting_calls import WaitingCalls

_AHEAD_COUNT: Final = 64
"""Calls asked of the core ahead."""

_MAX_GATHERED: Final = 512
"""Completions in one turn; four make a unary call."""

_MAX_WAIT_S: Final = 0.15
"""Longest sleep: grpcio's deadlines are of the wall clock, which may step, but below 0.2 s it waits only once."""

_AWAKE_S: Final = 0.0003
"""Waits that are shorter are waited awake: falling asleep and being woken takes longer than an answer. With one request
in flight LeNet's median went from 389 to 314 us, at 385 and 365 us of processor time (2 cores, interleaved)."""

_FEW_COUNT: Final = 4
"""Where fewer calls than this have come in a turn, grpc's own threads get the processor once before they are answered:
they may have the next in hand. Among many it only joins all there are into one run, for which the callers then wait:
27,000 to 29,100 requests a second without it, 64 and 128 in flight, 25,800 with it (LeNet, 2 cores)."""

_QUIET_COUNT: Final = 8
"""Calls that came alone, one after the other, until the next is waited for awake: among many the time is better spent
on what others have to do."""

_Callback: TypeAlias = Callable[[], None]

_log = logging.getLogger(__name__)


class FastTransport:
    """Carries a method table over a completion queue. `post` may be called from any thread, the rest on the loop's."""

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._server: core.CoreServer | None = None
        self._unary: dict[bytes, tuple[str, UnaryMethod]] = {}
        self._streaming: dict[bytes, tuple[str, StreamMethod]] = {}
        self._streams: set[StreamCall] = set()
        self._limit = options.max_message_bytes
        self._on_refused: OnRefused | None = None
        self._begun: list[UnaryCall] = []
        self._older: list[UnaryCall] = []
        self._soon: list[_Callback] = []
        self._posted: deque[_Callback] = deque()
        self._is_ringing = False
        self._timers: list[tuple[float, int, _Callback]] = []
        self._timer_numbers = itertools.count()
        self._is_stopping = False
        self._seen_count = 0
        self._is_awake = False
        self._alone_count = 0
        self._unread = UnreadAnswers(options.max_unread_answers, options.max_unread_bytes)
        self._waiting = WaitingCalls(self, options.max_waiting_calls, options.message_limit_s)

    def post(self, callback: Callable[[], None]) -> None:
        """Runs a callback on the loop thread soon; after the loop has ended, not at all."""
        self._posted.append(callback)
        server = self._server
        if server is not None and not self._is_ringing:
            self._is_ringing = True
            server.bell.ring(self._rang)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Runs a callback once the arrivals at hand are all handed to their methods."""
        self._soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Runs a callback after a delay."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_numbers), callback))

    def run(self, table: MethodTable, on_start: Callable[[int], None]) -> None:
        """Serves until `stop` has ended; see `transport.Transport`."""
        check_listenable(self._options.host, self._options.port, is_shared=self._options.is_shared)
        self._on_refused = table.on_refused
        self._unary = {name.encode(): (name, method) for name, method in table.unary.items()}
        self._streaming = {name.encode(): (name, method) for name, method in table.stream.items()}
        server = core.CoreServer(channel_options(self._options))
        try:
            port = _listen(server, self._options)
            server.start(_AHEAD_COUNT, self._arrived)
            self._server = server
            on_start(port)
            with guarding(port, self._options.max_concurrent_streams, lambda: self._seen_count):
                while not server.is_down:
                    self._turn(server)
        finally:
            self._server = None
            server.close()

    def stop(self, grace_s: float) -> None:
        """Ends `run` within the grace time."""
        server = self._server
        if server is None or self._is_stopping:
            return
        self._is_stopping = True
        for call in list(self._streams):
            call.half_close()
        server.begin_shutdown()
        self.call_later(grace_s, server.cancel_all)

    def _turn(self, server: core.CoreServer) -> None:
        self._await(server, self._wait_s())
        if self._soon and len(self._begun) < _FEW_COUNT:
            os.sched_yield()
            server.gather(0.0, _MAX_GATHERED)
        for _ in range(len(self._posted)):
            _run(self._posted.popleft())
        self._run_due()
        soon, self._soon = self._soon, []
        for callback in soon:
            _run(callback)
        # A message comes in the turn of its call or in the next, most are answered then, and watching costs an event.
        older, self._older, self._begun = self._older, self._begun, []
        for call in older:
            call.watch(self._waiting)
        if self._older:
            self._alone_count = self._alone_count + 1 if len(self._older) == 1 else 0

    def _await(self, server: core.CoreServer, wait_s: float) -> None:
        """Waits for arrivals: awake where they come one at a time, and the last wait was short; asleep where not."""
        begin_s = time.monotonic()
        if self._is_awake and self._alone_count >= _QUIET_COUNT and wait_s > _AWAKE_S:
            while time.monotonic() < begin_s + _AWAKE_S:
                if server.gather(0.0, _MAX_GATHERED):
                    return
                os.sched_yield()
        server.gather(wait_s, _MAX_GATHERED)
        self._is_awake = time.monotonic() < begin_s + _AWAKE_S

    def _wait_s(self) -> float:
        if self._soon or self._posted:
            return 0.0
        if self._timers:
            return min(_MAX_WAIT_S, self._timers[0][0] - time.monotonic())
        return _MAX_WAIT_S

    def _run_due(self) -> None:
        if self._timers:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _run(heapq.heappop(self._timers)[2])

    def _rang(self, _: core.Event) -> None:
        # Before the posted callbacks run: whoever posts while they do rings again.
        self._is_ringing = False

    def _arrived(self, event: core.Event) -> None:
        server = self._server
        if server is None or not event.success:
            return
        server.request()
        self._seen_count += 1
        name: bytes = event.call_details.method
        unary = self._unary.get(name)
        if len(event.invocation_metadata) > MAX_ENTRIES or unary is None:
            # Of other unary calls, those that do not end soon are looked at by `UnaryCall.watch`.
            error = metadata_error(event.invocation_metadata)
            if error is not None:
                refuse(event, error)
                return
        if unary is not None:
            self._begun.append(UnaryCall(*unary, self._limit, event, self._unread, self._on_refused, self))
        elif name in self._streaming:
            self._begin_stream(*self._streaming[name], event)
        else:
            text = "method: expected one that reflection lists, got one not served here"
            refuse(event, ServiceError(Reason.UNKNOWN_METHOD, text))

    def _begin_stream(self, name: str, method: StreamMethod, event: core.Event) -> None:
        limit, unread = self._options.max_message_bytes, self._unread.bytes
        call = StreamCall(name, limit, event, self._streams.discard, unread, self._on_refused)
        self._streams.add(call)
        call.begin(method)


def _run(callback: _Callback) -> None:
    try:
        callback()
    except Exception:
        # As in asyncio: one callback's trouble is not the loop's.
        _log.exception("loop: a callback failed")


def _listen(server: core.CoreServer, options: TransportOptions) -> int:
    try:
        with created_privately(options.host):
            return server.listen(options.address, server_credentials(options.tls) if options.tls else None)
    except RuntimeError as error:
        raise ListenError(f"{options.address}: grpcio cannot listen there: {str(error)[:200]}") from None
