"""The HTTP server of the metrics port: one thread for all connections, two that write pages, and no more.

Whoever sends slowly, or reads slowly, costs a socket until his time is over or the place is needed; never a thread.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from fitserve_service.listening import listening_socket
from fitserve_service.pages_http import (
    HEAD_END,
    MAX_HEAD_BYTES,
    Request,
    RequestError,
    Response,
    read_request,
    refusal,
)

_WRITER_COUNT: Final = 2
_MAX_LINGERING_BYTES: Final = 1 << 20
"""What a caller may still send while his answer is under way; closing on unread bytes would cut the answer off."""

_SHORT_S: Final = 1.0
"""How long to wait where the process has no descriptor for another connection."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PortLimits:
    """What one caller may cost.

    Args:
        connection_count: Connections at once; beyond, the one that has kept the server waiting longest is closed.
        head_s: Time for a whole request to arrive.
        answer_s: Time for a whole answer to be taken.
        tick_s: How often `tick` is called.
    """

    connection_count: int = 128
    head_s: float = 5.0
    answer_s: float = 10.0
    tick_s: float = 2.0


class MetricsPort:
    """Serves pages on threads of its own until it is closed."""

    def __init__(
        self,
        host: str,
        port: int,
        answer: Callable[[Request], Response],
        *,
        tick: Callable[[], object] = lambda: None,
        limits: PortLimits | None = None,
    ) -> None:
        """Starts listening.

        Args:
            host: Name or address.
            port: TCP port; 0 takes a free one.
            answer: Writes the answer to a request, or raises RequestError; called on at most two threads at once.
            tick: Called every so often on the port's own thread; must be short.
            limits: What one caller may cost.

        Raises:
            ListenError: the address cannot be listened on.
        """
        self._socket = listening_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._answer, self._tick, self._limits = answer, tick, limits or PortLimits()
        self._writers = ThreadPoolExecutor(_WRITER_COUNT, thread_name_prefix="pages")
        self._open: set[asyncio.Task[Any]] = set()
        self._waiting: dict[asyncio.Task[Any], None] = {}
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening and ends the connections; once only."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._writers.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        accepting = asyncio.create_task(self._accept())
        ticking = asyncio.create_task(self._keep_ticking())
        await self._closing.wait()
        tasks = [accepting, ticking, *self._open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        """Takes connections; where there is no descriptor for one it waits, and says so once."""
        # `asyncio.start_server` would write a record for each try, thousands a second.
        self._socket.setblocking(False)
        is_short = False
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
            except OSError as error:
                if not is_short:
                    _log.error("the metrics port takes no connections for now: %s", error.strerror)
                is_short = True
                await asyncio.sleep(_SHORT_S)
                continue
            if is_short:
                _log.info("the metrics port takes connections again")
            is_short = False
            self._make_room()
            task = asyncio.create_task(self._converse(connection))
            self._open.add(task)
            self._waiting[task] = None
            # One that is cancelled before it has begun closes nothing itself.
            task.add_done_callback(partial(_close, connection))
            # An accept that need not wait gives nobody else a turn.
            await asyncio.sleep(0)

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tick_s)
            try:
                self._tick()
            except Exception:
                _log.exception("what is done every %g s failed this time", self._limits.tick_s)

    async def _converse(self, connection: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD_BYTES)
            await self._exchange(task, reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # A caller that goes away, never comes to the point, or had to make room is no news.
        finally:
            self._open.discard(task)
            self._waiting.pop(task, None)
            if writer is not None:
                writer.transport.abort()

    async def _exchange(
        self, task: asyncio.Task[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(self._limits.head_s):
            head = await _read_head(reader)
        del self._waiting[task]
        content = await self._written(head)
        self._waiting[task] = None
        async with asyncio.timeout(self._limits.answer_s):
            writer.write(content)
            writer.write_eof()
            await _linger(reader)

    async def _written(self, head: bytes | None) -> bytes:
        """Gives the answer as bytes, whatever happens."""
        try:
            if head is None:
                text = f"expected a request of at most {MAX_HEAD_BYTES} bytes"
                raise RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
            request = read_request(head)
            response = await asyncio.get_running_loop().run_in_executor(self._writers, self._answer, request)
            return response.to_bytes(is_head=request.is_head)
        except RequestError as error:
            return refusal(error).to_bytes(is_head=head is not None and head.startswith(b"HEAD "))
        except Exception:
            _log.exception("a page could not be written")
            failure = RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "the page could not be written; the log says why")
            return refusal(failure).to_bytes()

    def _make_room(self) -> None:
        """Closes the connection that has kept the server waiting longest, where there are too many."""
        if len(self._open) >= self._limits.connection_count and self._waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self._open.discard(oldest)
            oldest.cancel()


def _close(connection: socket.socket, _: object) -> None:
    connection.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    """Reads up to the empty line; None where there is none within the limit."""
    try:
        return await reader.readuntil(HEAD_END)
    except asyncio.LimitOverrunError:
        return None


async def _linger(reader: asyncio.StreamReader) -> None:
    """Waits until the caller has taken the answer and closed his side."""
    taken = 0
    while taken < _MAX_LINGERING_BYTES and (part := await reader.read(1 << 16)):
        taken += len(part)
