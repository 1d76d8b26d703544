"""A limit on a piece of work in this process that may take for ever: a compiler, an autotuner."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

_AGAIN_S: Final = 2.0
"""The alarm goes on: a library may swallow the first."""


class TimeLimitError(RuntimeError):
    """The work was over its limit, and was left."""


class _Interruption(BaseException):
    """Ends the work; no Exception, since compilers catch those and try something else."""


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Ends what runs in the context after a time, processes that it started included.

    Work inside one call of a compiled library ends when that call does. In another thread than the main one there is
    no limit.

    Args:
        limit_s: Seconds, above 0.

    Raises:
        TimeLimitError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_open = True
    children = _descendants(os.getpid())

    def ring(_: int, __: FrameType | None) -> None:
        if is_open:
            raise _Interruption

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, limit_s, _AGAIN_S)
            yield
        finally:
            is_open = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Interruption:
        _end(_descendants(os.getpid()) - children)
        raise TimeLimitError(f"time limit: expected at most {limit_s:g} s, still at work then") from None
    finally:
        signal.signal(signal.SIGALRM, before)


def _end(children: set[int]) -> None:
    """Ends compilers that were left behind, and has inductor make its pool of them anew."""
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pools = sys.modules.get("torch._inductor.async_compile")
    forget = getattr(pools, "after_fork", None)  # private: a torch without it goes on with the pool that it has
    if children and forget is not None:
        forget()


def _descendants(pid: int) -> set[int]:
    """Finds the processes that a process and its children started (Linux)."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found |= set(map(int, path.read_text().split()))
    return found.union(*map(_descendants, found)) if found else found
