"""Ends the command on SIGINT and SIGTERM with one sentence and the exit code 130 or 143. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns the first signal into a KeyboardInterrupt, so that the display is put back; a second one ends at once.

    Every file of a run is written aside and renamed, so ending at once leaves none half-written.

    Args:
        sentence: Builds what is said; it is said once.
    """

    def __init__(self, sentence: Callable[[], str]) -> None:
        self._sentence = sentence
        self._signal = 0

    @property
    def is_due(self) -> bool:
        """Whether a signal has come."""
        return self._signal != 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches the signals meanwhile; does nothing outside the main thread, which no signal reaches."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Says the sentence and ends the process; further signals change nothing."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        # Straight to the descriptor: the signal may have come while Python's own buffer was being written.
        os.write(2, f"{self._sentence()}\n".encode(errors="replace"))
        os._exit(128 + self._signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:
            self.end()
        self._signal = number
        raise KeyboardInterrupt
