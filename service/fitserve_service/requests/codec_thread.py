"""The thread that reads and writes what takes long: on the loop thread everybody would wait with it.

It runs Python, which yields the interpreter every few milliseconds, and calls into C of a few tens of milliseconds at
most: the bounds on messages and answers see to that. It is one thread, so that no caller gets more than its share.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from fitserve_service.errors import Reason, ServiceError

MAX_WAITING_BYTES: Final = 256 << 20
"""Messages that wait for the thread; four of the largest."""

ResultT = TypeVar("ResultT")


class CodecThread:
    """Runs work beside the loop, in order, and its continuation on the loop. Lives on the loop thread.

    Args:
        post: Runs a callback on the loop thread, from any thread.
        max_waiting_bytes: Bytes of messages that may wait.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._post = post
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._executor = ThreadPoolExecutor(1, "codec")

    def read(self, size_bytes: int, work: Callable[[], ResultT], then: Callable[[ResultT | Exception], None]) -> None:
        """Reads a message.

        Args:
            size_bytes: Of the message.
            work: Runs on the thread.
            then: Takes its result, or what it raised, on the loop thread.

        Raises:
            ServiceError: QUEUE_FULL; too many bytes wait.
        """
        if self._waiting_bytes and self._waiting_bytes + size_bytes > self._max_waiting_bytes:
            text = f"expected at most {self._max_waiting_bytes} bytes of messages with many elements to be read"
            raise ServiceError(Reason.QUEUE_FULL, f"message: {text}, {self._waiting_bytes} wait; try later")
        self._waiting_bytes += size_bytes

        def end(result: ResultT | Exception) -> None:
            self._waiting_bytes -= size_bytes
            then(result)

        self.write(work, end)

    def write(self, work: Callable[[], ResultT], then: Callable[[ResultT | Exception], None]) -> None:
        """Writes an answer; arguments as of `read`."""
        self._executor.submit(_run, work, then, self._post)

    def close(self) -> None:
        """Ends the thread once its work is done; what waits is not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _run(
    work: Callable[[], ResultT],
    then: Callable[[ResultT | Exception], None],
    post: Callable[[Callable[[], None]], None],
) -> None:
    post(partial(then, _result_of(work)))


def _result_of(work: Callable[[], ResultT]) -> ResultT | Exception:
    try:
        return work()
    except ServiceError as error:
        # Its traceback would keep the message, and what was read of it, until the collector comes by.
        return error.with_traceback(None)
    except Exception as error:
        return error
