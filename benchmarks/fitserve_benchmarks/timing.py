"""Times the calls of one contestant, with the garbage collector out of the way.

Shapes: K calls.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from fitserve_benchmarks.contestants import Contestant, ResidentContestant
from fitserve_benchmarks.statistics import Times
from fitserve_benchmarks.subject import Batch

SETTLE_CALLS: Final = 3
"""Calls at the start of each trial that are not timed: the contestant before has left its own data in the caches."""

_SETTLE_S: Final = 0.05
_WARM_UP_S: Final = 0.2
_WARM_UP_CALLS: Final = 10
_LONGEST_WARM_UP_S: Final = 2.0


def timed_call(contestant: Contestant) -> Callable[[Batch], Any]:
    """Gives what is timed: device to device where the contestant leaves inputs and outputs there."""
    return contestant.call if isinstance(contestant, ResidentContestant) else contestant.run


def time_calls(contestant: Contestant, batches: Sequence[Batch], times_s: Times) -> None:
    """Fills (K) with the time of each call, after calls that are not timed."""
    call, clock, count = timed_call(contestant), time.perf_counter, len(batches)
    settle(contestant, batches)
    with uncollected():
        for index in range(len(times_s)):
            batch = batches[index % count]
            started_s = clock()
            call(batch)
            times_s[index] = clock() - started_s


def settle(contestant: Contestant, batches: Sequence[Batch]) -> None:
    """Makes three calls that are not timed; one where a call is so long that the caches settle within it."""
    call, started_s = timed_call(contestant), time.perf_counter()
    for index in range(SETTLE_CALLS):
        call(batches[index % len(batches)])
        if time.perf_counter() - started_s > _SETTLE_S:
            break


def warm_up(contestant: Contestant, batches: Sequence[Batch]) -> float:
    """Runs until nothing is lazy any more: ten calls and 0.2 s, at most 2 s; gives the time of a call."""
    calls, started_s, taken_s = 0, time.perf_counter(), 0.0
    while taken_s < _LONGEST_WARM_UP_S and (calls < _WARM_UP_CALLS or taken_s < _WARM_UP_S):
        contestant.run(batches[calls % len(batches)])
        calls, taken_s = calls + 1, time.perf_counter() - started_s
    return taken_s / calls


@contextmanager
def uncollected() -> Iterator[None]:
    """Collects garbage now, and not again before the context is left."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
