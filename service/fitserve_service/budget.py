"""Where a request's time goes: decode, queue, run, encode. The parts add up to its time from arrival to answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

TIMING_KEY: Final = "fitserve-timing"
"""Trailing metadata of every answer: `decode_us=12,queue_us=30,run_us=26,encode_us=8`, whole microseconds."""

Timings: TypeAlias = tuple[tuple[str, str]]


@dataclass(slots=True)
class Budget:
    """The time of one request, written by the intake as it goes.

    Args:
        begin_s: Monotonic time at which its message was there.
        decode_s: Reading and checking it.
        queue_s: Waiting, for others to join, for the run before, and for a thread.
        run_s: In the runtime, with joining and splitting.
        encode_s: Writing the answer.
        total_s: All of it so far.
    """

    begin_s: float = field(default_factory=time.monotonic)
    decode_s: float = 0.0
    queue_s: float = 0.0
    run_s: float = 0.0
    encode_s: float = 0.0
    total_s: float = 0.0

    def decoded(self, now_s: float) -> None:
        """The request goes into the queue, or is refused."""
        self.decode_s = self.total_s = now_s - self.begin_s

    def answered(self, run_s: float, came_s: float, now_s: float) -> None:
        """The answer is written, of a request that came back at `came_s` from a run of `run_s`.

        What is left of the time until then it waited.
        """
        passed_s = came_s - self.begin_s - self.decode_s
        self.run_s = run_s = min(run_s, passed_s)
        self.queue_s = passed_s - run_s
        self.encode_s = now_s - came_s
        self.total_s = now_s - self.begin_s

    def metadata(self) -> Timings:
        """Gives the trailing metadata that tells the caller."""
        return timing_metadata(self.decode_s, (self.queue_s,), self.run_s, self.encode_s)[0]


def timing_metadata(decode_s: float, queue_s: Sequence[float], run_s: float, encode_s: float) -> list[Timings]:
    """Gives the trailing metadata of each of several requests that differ in how long they waited."""
    before, after = (
        f"decode_us={int(decode_s * 1e6)},queue_us=",
        f",run_us={int(run_s * 1e6)},encode_us={int(encode_s * 1e6)}",
    )
    return [((TIMING_KEY, f"{before}{int(waited_s * 1e6)}{after}"),) for waited_s in queue_s]
