"""Keeps a run that was expected to be short from holding the loop thread: it is ended there, and begun elsewhere.

How long a run takes may depend on the values of a request. What was short a thousand times may once take seconds, and
on the loop thread everybody would wait with it. So a thread looks, now and then, since when a run is under way there.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Final

from fitserve_service.runs import Run, is_carried_out
from fitserve_service.session import RunawayError, RunSwitch

MOST_S: Final = 0.1
"""A hundred times what a run on the loop thread is expected to take."""


class InlineGuard:
    """Carries runs out on the loop thread. Everything but its own thread's look belongs to that thread.

    Args:
        most_s: What takes longer is ended; to twice as long, for it is looked at as often as this.
    """

    def __init__(self, most_s: float = MOST_S) -> None:
        self._most_s = most_s
        self._began_s = 0.0
        self._switch: RunSwitch | None = None
        self._is_closed = threading.Event()

    def is_carried_out(self, run: Run) -> bool:
        """Runs a batch once; False where it is to be run elsewhere: it takes many runs, or much time. Never raises."""
        switch = self._switch
        if switch is None or switch.is_off:
            switch = self._renew()
        run.switch = switch
        self._began_s = time.monotonic()
        is_done = is_carried_out(run)
        self._began_s = 0.0
        run.switch = None
        # It may have been turned off a moment late, for a run that has ended; whatever it met is run again.
        return is_done and not (switch.is_off and isinstance(run.answers[0], RunawayError))

    def prepare(self) -> None:
        """Starts its thread, which the first run would do otherwise: that takes longer than a short run."""
        self._renew()

    def close(self) -> None:
        """Ends its thread; what runs from now on is not looked at."""
        self._is_closed.set()

    def look(self) -> None:
        """Ends the run that is under way on the loop thread, where it has taken too long; from any thread."""
        began_s, switch = self._began_s, self._switch
        if began_s and switch is not None and time.monotonic() - began_s > self._most_s:
            switch.turn_off()

    def _renew(self) -> RunSwitch:
        if self._switch is None:
            watch = (weakref.ref(self), self._is_closed, self._most_s)
            threading.Thread(target=_watch, args=watch, name="inline-guard", daemon=True).start()
        self._switch = RunSwitch()
        return self._switch


def _watch(known: weakref.ref[InlineGuard], is_closed: threading.Event, every_s: float) -> None:
    while not is_closed.wait(every_s):
        guard = known()
        if guard is None:
            return
        guard.look()
        # Not held over the wait: a guard that nobody has any more is to go.
        del guard
