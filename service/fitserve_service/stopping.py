"""How a process hears that it is to stop: the first signal drains it, a second ends it now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def block_stop_signals() -> None:
    """Keeps stop signals for `watch_stop_signals`; before the first thread starts, and inherited by child processes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def watch_stop_signals(stop: Callable[[], None], last_resort_s: float) -> None:
    """Starts a thread that waits for the signals.

    Args:
        stop: Called at the first; a second ends the process with 128 + its number.
        last_resort_s: A process still there so long after the first ends with 0: a run or a load that never ends cannot
            be broken off, and its thread would keep it.
    """
    threading.Thread(target=_watch, args=(stop, last_resort_s), name="signals", daemon=True).start()


def _watch(stop: Callable[[], None], last_resort_s: float) -> None:
    signal.sigwait(_STOP_SIGNALS)
    stop()
    last_resort = threading.Timer(last_resort_s, os._exit, (0,))
    last_resort.daemon = True
    last_resort.start()
    second = signal.sigwait(_STOP_SIGNALS)
    os._exit(128 + second)
