"""The thread that reads and writes what takes long: on the loop thread everybody would wait with it.

It runs Python, which yields the interpreter every few milliseconds, and calls into C of a few tens of milliseconds at
most: the bounds on messages and answers see to that. It is one thread, and callers take turns.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from fitserve_service.errors import Reason, ServiceError

MAX_WAITING_BYTES: Final = 256 << 20
"""Messages that wait for the thread; four of the largest."""

ResultT = TypeVar("ResultT")


class _Task(NamedTuple):
    """Work that waits.

    Args:
        work: Runs on the thread.
        then: Takes its result, or what it raised, on the loop thread.
        is_wanted: Whether anybody still waits for it; what nobody wants is not begun.
        size_bytes: What it counts.
    """

    work: Callable[[], Any]
    then: Callable[[Any], None]
    is_wanted: Callable[[], bool]
    size_bytes: int


class CodecThread:
    """Runs work beside the loop, each caller's in order, and its continuation on the loop. Lives on the loop thread.

    Args:
        post: Runs a callback on the loop thread, from any thread.
        max_waiting_bytes: Bytes of messages that may wait; of one caller half of it.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._post = post
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._bytes_of: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Task]] = {}
        self._turns: deque[str] = deque()
        self._is_busy = False
        self._is_closed = False
        self._executor = ThreadPoolExecutor(1, "codec")

    def read(
        self,
        size_bytes: int,
        work: Callable[[], ResultT],
        then: Callable[[ResultT | Exception], None],
        *,
        caller: str = "",
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Reads a message.

        Args:
            size_bytes: Of the message.
            work: Runs on the thread.
            then: Takes its result, or what it raised, on the loop thread; not called where nobody wants it.
            caller: Whose it is: callers take turns.
            is_wanted: Whether anybody still waits for it; asked before it begins.

        Raises:
            ServiceError: QUEUE_FULL; too many bytes wait.
        """
        for waiting, most in (
            (self._waiting_bytes, self._max_waiting_bytes),
            (self._bytes_of[caller], self._max_waiting_bytes // 2),
        ):
            if waiting and waiting + size_bytes > most:
                text = f"expected at most {most} bytes of messages with many elements to be read"
                raise ServiceError(Reason.QUEUE_FULL, f"message: {text}, {waiting} wait; try later")
        self._count(caller, size_bytes)
        self._add(f"read {caller}", _Task(work, then, is_wanted, size_bytes))

    def write(self, work: Callable[[], ResultT], then: Callable[[ResultT | Exception], None]) -> None:
        """Writes an answer; arguments as of `read`. Answers take turns with the messages of each caller."""
        self._add("write", _Task(work, then, lambda: True, 0))

    def _count(self, caller: str, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        self._bytes_of[caller] += size_bytes
        if not self._bytes_of[caller]:
            del self._bytes_of[caller]

    def _add(self, lane: str, task: _Task) -> None:
        queue = self._waiting.get(lane)
        if queue is None:
            queue = self._waiting[lane] = deque()
            self._turns.append(lane)
        queue.append(task)
        if not self._is_busy:
            self._begin_next()

    def _begin_next(self) -> None:
        while self._turns and not self._is_closed:
            lane = self._turns.popleft()
            queue = self._waiting[lane]
            task = queue.popleft()
            if queue:
                self._turns.append(lane)
            else:
                del self._waiting[lane]
            if task.is_wanted():
                self._is_busy = True
                self._executor.submit(_run, task.work, partial(self._ended, lane, task), self._post)
                return
            self._count(lane.removeprefix("read "), -task.size_bytes)

    def _ended(self, lane: str, task: _Task, result: Any) -> None:
        self._is_busy = False
        self._count(lane.removeprefix("read "), -task.size_bytes)
        # Before its continuation: the thread need not wait for what the loop has to do.
        self._begin_next()
        task.then(result)

    def close(self) -> None:
        """Ends the thread once its work is done; what waits is not begun."""
        self._is_closed = True
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
