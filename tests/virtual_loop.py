"""A loop whose turns and whose clock a test makes."""

from __future__ import annotations

import heapq
import queue
from collections import deque
from collections.abc import Callable
from itertools import count


class VirtualLoop:
    """A loop whose turns and whose clock the test makes; `post` is the one door for other threads."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._soon: deque[Callable[[], None]] = deque()
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def post(self, callback: Callable[[], None]) -> None:
        self._posted.put(callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now_s + delay_s, next(self._numbers), callback))

    def is_idle(self) -> bool:
        """Tells whether nothing is to come but what other threads may post."""
        return not self._soon and not self._timers

    def turn(self) -> None:
        """Runs what was asked for before this turn; what it asks for comes in the next."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def advance(self, step_s: float) -> None:
        """Lets time pass, and timers go off at their time."""
        end_s = self.now_s + step_s
        while self._timers and self._timers[0][0] <= end_s:
            self.now_s, _, callback = heapq.heappop(self._timers)
            callback()
        self.now_s = end_s

    def fire_early(self, by_s: float) -> None:
        """Lets the next timer go off before its time, as loops with a coarse clock do."""
        due_s, _, callback = heapq.heappop(self._timers)
        self.now_s = due_s - by_s
        callback()

    def take_posted(self, *, wait: bool) -> None:
        self._posted.get(timeout=20 if wait else None, block=wait)()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Turns, lets time pass and takes what other threads post, until all is done."""
        while not is_done():
            if self._soon:
                self.turn()
            elif not self._posted.empty():
                self.take_posted(wait=False)
            elif self._timers:
                self.advance(max(self._timers[0][0] - self.now_s, 0.0))
            else:
                self.take_posted(wait=True)
