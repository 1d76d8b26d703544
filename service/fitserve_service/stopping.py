"""What a process makes of signals: it stops, reloads, or goes on as if there were none; and who dies with whom.

| signal                             | what happens                                                                  |
|------------------------------------|-------------------------------------------------------------------------------|
| SIGTERM, SIGINT, SIGQUIT           | the process drains and ends; a second one of them ends it now                 |
| SIGHUP                             | certificates and access file are read anew; it drains where its terminal closed |
| SIGUSR1, SIGUSR2, SIGALRM, SIGPIPE | nothing                                                                       |

All are blocked in all threads, and one thread waits for them. A parent tells its workers by their links, never by
signals: a worker that was signalled with its parent, as service managers do, would take the second for impatience.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

_STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_IGNORED: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE})
_WATCHED: Final = _STOPPING | _IGNORED | {signal.SIGHUP}

_STANDARD: Final = (0, 1, 2)
"""Descriptors of stdin, stdout and stderr."""

_SI_KERNEL: Final = 0x80
"""Where the kernel has sent a signal, and no process. Source: sigaction(2)."""

_PR_SET_PDEATHSIG: Final = 1
"""Source: prctl(2)."""

_log = logging.getLogger(__name__)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, where the kernel can.

    Args:
        parent: The parent's process id; the process ends at once where it has another already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def block_signals() -> None:
    """Keeps signals for a `SignalWatch`; before the first thread starts, and inherited by child processes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)


class SignalWatch:
    """Reacts to the signals of this process, once `block_signals` has kept them, on a thread of its own.

    Args:
        stop: Called once, at the first that stops; a second ends the process with 128 + its number.
        reload: Called at SIGHUP.
        last_resort_s: A process still there so long after `stop` ends with 0: a run or a load that never ends cannot be
            broken off, and its thread would keep it.
    """

    def __init__(self, stop: Callable[[], None], reload: Callable[[], None], last_resort_s: float) -> None:
        self._stop = stop
        self._reload = reload
        self._last_resort_s = last_resort_s
        self._terminal = _Terminal()
        self._lock = threading.Lock()
        self._is_stopping = False
        self._told: set[int] = set()

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def stop(self) -> None:
        """Stops the process as a first signal does, from any thread; does nothing where it stops already."""
        with self._lock:
            if self._is_stopping:
                return
            self._is_stopping = True
        last_resort = threading.Timer(self._last_resort_s, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()
        self._stop()

    def _run(self) -> None:
        # One that comes twice, from a signal and from the parent, counts once: only signals are impatient.
        is_signalled = False
        while True:
            found = signal.sigwaitinfo(_WATCHED)
            number = found.si_signo
            if number in _STOPPING:
                if is_signalled:
                    os._exit(128 + number)
                is_signalled = True
                self.stop()
            elif number == signal.SIGHUP:
                self._hang_up(found)
            elif number not in self._told:
                self._told.add(number)
                _log.debug("%s means nothing here; it is not told again", signal.Signals(number).name)

    def _hang_up(self, found: signal.struct_siginfo) -> None:
        if self._terminal.has_closed(found):
            _log.info("SIGHUP: the terminal has closed")
            self.stop()
            return
        _log.info("SIGHUP: reading certificates and the access file anew")
        try:
            self._reload()
        except Exception:
            _log.exception("SIGHUP: they could not be read anew")


class _Terminal:
    """The terminal that a process was started from, if any."""

    def __init__(self) -> None:
        self._descriptors = [descriptor for descriptor in _STANDARD if os.isatty(descriptor)]
        # As nohup has it: whoever started it wants it to outlive the terminal.
        self._is_outlived = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def has_closed(self, found: signal.struct_siginfo) -> bool:
        """Tells whether a SIGHUP means that the terminal has closed: the kernel says so, or the shell that is hung up.

        Anybody else may ask for a reload, of a server that was left behind by its terminal, too.
        """
        if self._is_outlived:
            return False
        is_of_shell = found.si_pid == os.getsid(0) and any(map(_is_hung_up, self._descriptors))
        return found.si_code == _SI_KERNEL or is_of_shell


def _is_hung_up(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
