"""How a process hears that it is to stop: the first signal drains it, a second ends it now; and who dies with whom."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PR_SET_PDEATHSIG: Final = 1
"""Source: prctl(2)."""


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, where the kernel can.

    Args:
        parent: The parent's process id; the process ends at once where it has another already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


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
