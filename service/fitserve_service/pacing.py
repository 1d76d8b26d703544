"""Sets how long requests wait for others, and how many run together, so that 99 of 100 are answered within a target.

A state machine without a clock of its own. What waits longer joins more, which costs latency and saves work; so the
delay grows slowly while there is room below the target, and falls fast when the target is missed. The size is bounded
by what the longest run may take, and by what was seen to be too much.

Source: additive increase, multiplicative decrease; Crankshaw et al., "Clipper", NSDI 2017, section 4.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

WINDOW_COUNT: Final = 200
"""Latencies that decide together: the 99th percentile of them is the third largest."""

_SHARE: Final = 0.99
_ROOM: Final = 0.7
"""Below this share of the target there is room for more."""

_MOST_DELAY: Final = 0.5
"""The delay never takes more of the target than this: the run needs its time too."""

_STEP: Final = 0.02
_BACK: Final = 0.5
_FEWER: Final = 0.75


@dataclass(slots=True)
class Pacing:
    """The delay and the size of one version's batches.

    Invariants: 0 <= delay_s <= target_s / 2, and 1 <= max_rows <= most_rows.

    Args:
        target_s: What 99 of 100 requests should take at most, from arrival to the end of their run; above 0.
        most_rows: Examples in one run at most, >= 1.
    """

    target_s: float
    most_rows: int
    delay_s: float = 0.0
    max_rows: int = 0
    _latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_rows = self.max_rows or self.most_rows

    def observe(self, latency_s: float) -> bool:
        """Counts one request in; True where that changed delay or size."""
        self._latencies.append(latency_s)
        if len(self._latencies) < WINDOW_COUNT:
            return False
        p99_s = sorted(self._latencies)[math.ceil(_SHARE * WINDOW_COUNT) - 1]
        self._latencies.clear()
        before = (self.delay_s, self.max_rows)
        if p99_s > self.target_s:
            self._back_off()
        elif p99_s < _ROOM * self.target_s:
            self._go_on()
        return before != (self.delay_s, self.max_rows)

    def _back_off(self) -> None:
        if self.delay_s > _STEP * self.target_s:
            self.delay_s *= _BACK
        elif self.delay_s:
            self.delay_s = 0.0
        else:
            # Nobody waits for others any more: what is left to give up is the length of a run.
            self.max_rows = max(int(self.max_rows * _FEWER), 1)

    def _go_on(self) -> None:
        if self.max_rows < self.most_rows:
            self.max_rows = min(self.max_rows + max(self.max_rows // 8, 1), self.most_rows)
        else:
            self.delay_s = min(self.delay_s + _STEP * self.target_s, _MOST_DELAY * self.target_s)
