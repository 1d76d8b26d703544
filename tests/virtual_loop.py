"""A loop whose turns and whose clock a test makes."""

from __future__ import annotations

import heapq
import queue
from collections.abc import Callable

from fitserve_benchmarks import simulated_parts


class VirtualLoop(simulated_parts.VirtualLoop):
    """A loop whose turns and whose clock the test makes; `post` is the one door for other threads."""

    def __init__(self) -> None:
        super().__init__()
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, callback: Callable[[], None]) -> None:
        self._posted.put(callback)

    def is_idle(self) -> bool:
        """Tells whether nothing is to come but what other threads may post."""
        return not self.has_work()

    def turn(self) -> bool:
        """Runs what was asked for before this turn; what it asks for comes in the next. False where that is nothing."""
        asked = len(self._soon)
        for _ in range(asked):
            self._soon.popleft()()
        return asked > 0

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
