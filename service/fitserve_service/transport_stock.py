"""The transport on grpcio's public API: one grpc.aio server on one event loop (uvloop where it is installed).

grpc.aio and not the sync server, whose worker threads a few stalled request bodies take for good.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from fitserve_service.calls import MethodTable, OnRefused, StreamMethod
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.listening import ListenError, check_listenable
from fitserve_service.reset_guard import guarding
from fitserve_service.status import answering
from fitserve_service.stock_calls import Context, StockStream, abort, run_unary, try_refuse_metadata
from fitserve_service.transport import (
    TransportOptions,
    channel_options,
)
from fitserve_service.transport_tls import server_credentials
from fitserve_service.unix_socket import created_privately
from fitserve_service.unread_bytes import UnreadBytes
from fitserve_service.waiting_calls import WaitingCalls

_log = logging.getLogger(__name__)

_CRASHED_S: Final = 10.0
"""Time for the calls of a server that ended by itself."""

_REBIND_S: Final = 5.0
_REBIND_PAUSE_S: Final = 0.02

_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class StockTransport:
    """Carries a method table over grpc.aio. `post` may be called from any thread, the rest on the loop thread."""

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._loop = _new_loop()
        self._streams: set[StockStream] = set()
        self._waiting = WaitingCalls(self, options.max_waiting_calls, options.message_limit_s)
        self._unread = UnreadBytes(options.max_unread_bytes)
        self._stopped: asyncio.Future[float] = self._loop.create_future()

    def post(self, callback: Callable[[], None]) -> None:
        """Runs a callback on the loop thread soon; after the loop has ended, not at all."""
        # Whoever posts cannot know that the loop ends at this very moment.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Runs a callback once the events at hand are handled."""
        self._loop.call_soon(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Runs a callback after a delay."""
        self._loop.call_later(delay_s, callback)

    def run(self, table: MethodTable, on_start: Callable[[int], None]) -> None:
        """Serves until `stop` has ended; see `transport.Transport`."""
        try:
            self._loop.run_until_complete(self._serve(table, on_start))
        finally:
            self._loop.close()

    def stop(self, grace_s: float) -> None:
        """Ends `run` within the grace time."""
        if not self._stopped.done():
            self._stopped.set_result(grace_s)

    async def _serve(self, table: MethodTable, on_start: Callable[[int], None]) -> None:
        router = _Router(self._handlers(table))
        server, accepting, port = await _listening(router, self._options)
        options = replace(self._options, port=port)
        on_start(port)
        with guarding(port, options.max_concurrent_streams, lambda: router.seen_count):
            server, crashed = await self._accept(router, server, accepting, options)
            grace_s = self._stopped.result()
            for call in list(self._streams):
                call.half_close()
            await asyncio.gather(*(each.stop(grace_s) for each in (server, *crashed)))

    async def _accept(
        self, router: _Router, server: grpc.aio.Server, accepting: asyncio.Future[Any], options: TransportOptions
    ) -> tuple[grpc.aio.Server, list[grpc.aio.Server]]:
        """Takes calls until this transport is stopped; returns the server that does, and those that crashed before."""
        crashed: dict[grpc.aio.Server, asyncio.Future[None]] = {}
        while not await self._is_over(accepting):
            _log.error("grpc.aio takes no further call: %s; it is begun anew, others have 10 s to end", _why(accepting))
            crashed[server] = asyncio.ensure_future(server.stop(_CRASHED_S))
            crashed[server].add_done_callback(functools.partial(_forget, crashed, server))
            server, accepting = await _listening_again(router, options)
        return server, list(crashed)

    async def _is_over(self, accepting: asyncio.Future[Any]) -> bool:
        """Waits until this transport is stopped, or its server has ended by itself; tells which."""
        await asyncio.wait({self._stopped, accepting}, return_when=asyncio.FIRST_COMPLETED)
        return self._stopped.done()

    def _handlers(self, table: MethodTable) -> dict[str, _Handler]:
        limit = self._options.max_message_bytes
        handlers: dict[str, _Handler] = {}
        for name, unary in table.unary.items():
            # As a unary handler, grpc.aio would leave a call without a whole message open and never say so.
            run = functools.partial(run_unary, unary, name, limit, self._waiting, self._unread, table.on_refused)
            handlers[name] = grpc.stream_unary_rpc_method_handler(run)
        for name, stream in table.stream.items():
            handlers[name] = grpc.stream_stream_rpc_method_handler(
                functools.partial(self._run_stream, stream, name, table.on_refused)
            )
        return handlers

    async def _run_stream(
        self, method: StreamMethod, name: str, on_refused: OnRefused | None, _: object, context: Context
    ) -> None:
        call = StockStream(name, context, self._unread, on_refused)
        if try_refuse_metadata(call, context):
            return
        with answering(call):
            call.handler = method(call)
        self._streams.add(call)
        reader = asyncio.ensure_future(call.read_all(self._options.max_message_bytes))
        try:
            await call.write_all()
        finally:
            call.cancelled()
            reader.cancel()
            self._streams.discard(call)
            call.forget_unread()


class _Router(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds a call's handler by its method; an unknown method is answered as such, with details."""

    def __init__(self, handlers: dict[str, _Handler]) -> None:
        self.seen_count = 0
        self._handlers = handlers
        self._unknown = grpc.stream_stream_rpc_method_handler(_refuse_unknown)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        self.seen_count += 1
        return self._handlers.get(handler_call_details.method, self._unknown)


async def _refuse_unknown(_: object, context: Context) -> None:
    error = ServiceError(Reason.UNKNOWN_METHOD, "method: expected one that reflection lists, got one not served here")
    await abort(context, error)


async def _listening(router: _Router, options: TransportOptions) -> tuple[grpc.aio.Server, asyncio.Future[Any], int]:
    """Starts a server; gives it, what ends when it takes no further call, and its port."""
    server = grpc.aio.server(options=channel_options(options))
    server.add_generic_rpc_handlers((router,))
    check_listenable(options.host, options.port, is_shared=options.is_shared)
    try:
        with created_privately(options.host):
            port: int = (
                server.add_secure_port(options.address, server_credentials(options.tls))
                if options.tls
                else server.add_insecure_port(options.address)
            )
    except RuntimeError as error:
        raise ListenError(f"{options.address}: grpcio cannot listen there: {str(error)[:200]}") from None
    before = asyncio.all_tasks()
    await server.start()
    return server, _accepting(server, asyncio.all_tasks() - before), port


def _accepting(server: grpc.aio.Server, begun: set[asyncio.Task[Any]]) -> asyncio.Future[Any]:
    """Finds the task that takes calls. A path that is no UTF-8 ends it, as of grpcio 1.85, and with it the server.

    `wait_for_termination` ends as well, but not before the last call did, which a caller may leave open for good.
    """
    taking = (task for task in begun if str(getattr(task.get_coro(), "__qualname__", "")).endswith("_server_main_loop"))
    return next(taking, None) or asyncio.ensure_future(server.wait_for_termination())


async def _listening_again(router: _Router, options: TransportOptions) -> tuple[grpc.aio.Server, asyncio.Future[Any]]:
    """Starts another server on the port of one that ended, which may hold it for a moment.

    Raises:
        ListenError: it was not let go within 5 s.
    """
    end_s = time.monotonic() + _REBIND_S
    while True:
        try:
            server, accepting, _ = await _listening(router, options)
        except ListenError:
            if time.monotonic() > end_s:
                raise
            await asyncio.sleep(_REBIND_PAUSE_S)
        else:
            return server, accepting


def _forget(
    crashed: dict[grpc.aio.Server, asyncio.Future[None]], server: grpc.aio.Server, _: asyncio.Future[None]
) -> None:
    del crashed[server]


def _why(accepting: asyncio.Future[Any]) -> str:
    error = None if accepting.cancelled() else accepting.exception()
    return f"{type(error).__name__}: {str(error)[:200]}" if error else "it ended"


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
