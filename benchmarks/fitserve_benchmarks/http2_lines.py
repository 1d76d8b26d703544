"""Several HTTP/2 connections that one thread drives: waited for together, to the microsecond.

Waiting is done in `select`, whose time limit is in microseconds; epoll and poll know none below a millisecond.
"""

from __future__ import annotations

import ctypes
import select
import sys
import time
from collections.abc import Sequence
from typing import Final

from fitserve_benchmarks.http2 import Answer, Http2Connection

_SETTINGS_S: Final = 5.0
_MOST_CONNECTIONS: Final = 900
"""`select` knows descriptors below 1,024; some are taken by what else the process has open."""

_SET_TIMER_SLACK: Final = 29
"""PR_SET_TIMERSLACK of prctl(2)."""


class LoadFailedError(RuntimeError):
    """The load could not be put on the server, or not to its end."""


class Http2Lines:
    """Connections to one method of one server. Not thread-safe; owns the connections.

    Args:
        host: Name or address.
        port: TCP port.
        method: `/package.Service/Method`.
        count: How many, 1..900.
        reads_status: As of `Http2Connection`.

    Raises:
        OSError: nobody listens there.
        LoadFailedError: more connections than can be waited for, or no HTTP/2 server there.
    """

    def __init__(self, host: str, port: int, method: str, count: int, *, reads_status: bool = False) -> None:
        if count > _MOST_CONNECTIONS:
            raise LoadFailedError(f"connections: expected at most {_MOST_CONNECTIONS}, got {count}")
        self.connections: list[Http2Connection] = []
        self._indexes: dict[int, int] = {}
        self._unwritten: set[int] = set(range(count))
        try:
            for index in range(count):
                connection = Http2Connection(host, port, method, reads_status=reads_status)
                self.connections.append(connection)
                self._indexes[connection.fileno()] = index
            self._descriptors = list(self._indexes)
            self._await_settings()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes all of them."""
        for connection in self.connections:
            connection.close()

    def send(self, index: int, framed_message: bytes) -> int:
        """Starts a call on one of them; it leaves at the next wait. Gives its stream number."""
        self._unwritten.add(index)
        return self.connections[index].send(framed_message)

    def receive(self, index: int) -> list[Answer]:
        """Reads what has arrived on one of them and gives the calls that are over.

        Raises:
            ConnectionLostError: the server closed it or is about to.
        """
        connection = self.connections[index]
        answers = connection.receive()
        if connection.wants_to_write:
            self._unwritten.add(index)
        return answers

    def wait_until(self, end_s: float) -> Sequence[int]:
        """Writes what is to be written, then waits until something can be read or written, at most until a time.

        Args:
            end_s: Time of `perf_counter`; one that is over waits for nothing.

        Returns:
            Places in `connections` of those with something to read.
        """
        if self._unwritten:
            self._flush()
        writing = [self.connections[index] for index in self._unwritten]
        # Writing to this machine does a good part of the receiver's work, so that time has passed.
        wait_s = max(end_s - time.perf_counter(), 0.0)
        readable, _, _ = select.select(self._descriptors, writing, (), wait_s)
        return [self._indexes[descriptor] for descriptor in readable]

    def _flush(self) -> None:
        """Writes on each what its socket takes, in one write where it takes all."""
        for index in tuple(self._unwritten):
            connection = self.connections[index]
            connection.flush()
            if not connection.wants_to_write:
                self._unwritten.remove(index)

    def _await_settings(self) -> None:
        """Waits until the server has said on each how many calls it takes."""
        end_s = time.perf_counter() + _SETTINGS_S
        while not all(connection.has_settings for connection in self.connections):
            if time.perf_counter() > end_s:
                raise LoadFailedError("connection: expected an HTTP/2 server's SETTINGS, got none within 5 s")
            for index in self.wait_until(end_s):
                self.receive(index)


def wake_promptly() -> None:
    """Has the kernel end this thread's waits when they are due, and not up to 50 microseconds later to join others."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, ctypes.c_ulong(1), 0, 0, 0)
