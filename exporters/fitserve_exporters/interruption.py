"""Ends a command on Ctrl-C and SIGTERM at once, with one line and nothing half-made left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

from fitserve_exporters.publishing.writing import WRITING

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Watches for signals while a command runs.

    A signal's Python handler runs only between two steps of the main thread, which may be within ONNX Runtime or torch
    for minutes, and an exception that it raises may be swallowed there. So a thread of its own waits for signals and
    ends the process. It waits for files that are being written: they are removed or published first. A signal that
    comes after the publication changes nothing.

    Args:
        program: Begins the line that is printed.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._terminal = -1
        self._number = 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Watches while it lasts; in another thread than the main one, which gets no signals, it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with contextlib.suppress(OSError):  # stderr may be closed; it is redirected while a graph is made
            self._terminal = os.dup(2)
        WRITING.has_published = False
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._wait, args=(reader,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_writer)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writer)  # the watcher reads the end of the pipe
            watcher.join()
            os.close(reader)
            if self._terminal >= 0:
                os.close(self._terminal)

    def settle(self) -> None:
        """Ends the process if a signal came: what it made fail must not be printed as another error."""
        if self._number:
            self._leave(self._number)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._number = number

    def _wait(self, reader: int) -> None:
        while numbers := os.read(reader, 1):
            if numbers[0] in _SIGNALS:
                self._leave(numbers[0])

    def _leave(self, number: int) -> None:
        with WRITING.lock:
            if WRITING.has_published:
                return
            word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
            with contextlib.suppress(OSError):
                os.write(self._terminal, f"{self._program}: {word}; nothing was published\n".encode())
            os._exit(128 + number)
