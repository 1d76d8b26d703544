"""How far long work on rows is: a bar on a terminal, two lines everywhere else. torch is not needed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

_TOLD_AFTER_S: Final = 5.0
Done: TypeAlias = "Callable[..., None]"


@contextmanager
def counted(what: str, total: int) -> Iterator[Done]:
    """Shows how many of `total` are done; calling what it gives counts some, by default one, from any thread."""
    if sys.stderr.isatty():
        yield from _bar(what, total)
        return
    started = time.monotonic()
    said = [False]

    def done(_count: int = 1) -> None:
        if not said[0] and time.monotonic() - started > _TOLD_AFTER_S:
            said[0] = True
            _say(f"reading {total:,} {what}, once; a later run with the same ones finds them read")

    yield done
    if said[0]:
        _say(f"read {total:,} {what} in {time.monotonic() - started:.0f} s")


def _bar(what: str, total: int) -> Iterator[Done]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"reading {what}", total=total)
        yield lambda count=1: bar.advance(task, count)


def _say(line: str) -> None:
    # Under torchrun one process of several speaks.
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
