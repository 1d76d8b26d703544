"""A time limit for the runs before a model is READY: one that loops for ever must not hold a loader for ever."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final

DEFAULT_RUN_LIMIT_S: Final = 120.0
LARGEST_LIMIT_S: Final = 3600.0
"""Most that `--canary-limit-s` takes."""

_ROOM: Final = 4.0
"""A run may take so many times what its rows took before: caches, other work on the machine, padding."""

_WATCH_S: Final = 0.5


class RunLimit:
    """Ends runs that take too long, from outside. A context manager around runs, one at a time.

    Each run has a time of its own, which grows with its rows by the time that a row took before.

    Args:
        options: ONNX Runtime's RunOptions of the runs; `terminate` ends them.
        limit_s: Seconds for a run of one row.
        on_run: Called when a run begins, with the seconds that it may take by the runs before it; and with 0 when it
            has ended.
    """

    def __init__(self, options: Any, limit_s: float, on_run: Callable[[float], None] | None = None) -> None:
        self.options = options
        self._limit_s = limit_s
        self._on_run = on_run
        self._row_s = 0.0
        self._rows, self._begin_s, self._allowed_s, self._is_running = 1, 0.0, limit_s, False
        self._is_left = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="run-limit", daemon=True)

    def __enter__(self) -> RunLimit:
        self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left.set()

    def begin(self, rows: int) -> None:
        """Starts the time of a run."""
        self._rows, self._begin_s = max(rows, 1), time.monotonic()
        expected_s = _ROOM * self._rows * self._row_s
        self._allowed_s = max(self._limit_s, expected_s)
        self._is_running = True
        if self._on_run is not None:
            self._on_run(expected_s)

    def end(self) -> None:
        """Stops the time of a run."""
        self._is_running = False
        self._row_s = max(self._row_s, (time.monotonic() - self._begin_s) / self._rows)
        if self._on_run is not None:
            self._on_run(0.0)

    def problem(self) -> str:
        """Describes the run that was ended, with the way to give it more time."""
        more_s = min(max(math.ceil(self._allowed_s), 1), LARGEST_LIMIT_S)
        rows = "a row" if self._rows == 1 else f"{self._rows} rows"
        return (
            f"expected the model to run {rows} within {self._allowed_s:g} s before it is READY, and had to end it: "
            f"does it loop for ever? If it is only slow, allow it more: --canary-limit-s {more_s:g}"
        )

    def _watch(self) -> None:
        while not self._is_left.wait(min(self._limit_s / 10, _WATCH_S)):
            if self._is_running and time.monotonic() - self._begin_s > self._allowed_s:
                self.options.terminate = True
                return
