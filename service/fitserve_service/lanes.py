"""Lanes: what waits for one version, what of it runs at once, and how many runs there are at a time.

Everything here belongs to the loop thread.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Final

from fitserve_contract.joinability.sizes import MOST_ROWS
from fitserve_service.batcher import Batcher, Room, Taken
from fitserve_service.costs import CostTable
from fitserve_service.model_config import ModelConfig
from fitserve_service.pacing import Pacing
from fitserve_service.runs import NO_SLOT, Job, Kind, Run
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import CUDA_PROVIDER

INLINE_LIMIT_S: Final = 0.002
"""A run that takes longer goes to a runner thread: handing one over costs a good part of a millisecond under load."""

_INLINE_LIMIT_BUSY_S: Final = 0.001
"""The same where more waits that could run beside it: LeNet in requests of 64 rows gave 719 a second on the loop alone,
819 with two of its runs of 1.3 ms at a time (2 cores, 32 in flight)."""

_SMALL_S: Final = 8e-5
"""A request whose run takes longer had better queue, where it finds a second core. Past the queue LeNet's requests of
1, 2 and 4 rows (20, 33 and 58 us a run) were answered 30, 22 and 14 % faster at 32 in flight, those of 8 (110 us) 9 %
slower (2 cores)."""

_PART_S: Final = 5e-4
"""What goes past the queue runs in parts of about this time, so that the first answers leave before the last request
runs: LeNet with 64 in flight 24,900 to 27,700 requests a second (parts of 32), of 8 22,900 (2 cores)."""

_TURN_S: Final = 0.004
"""What goes past the queue in one turn of the loop may take so long; more is a matter for the queue and its bounds."""


@dataclass(slots=True, eq=False)
class Lane:
    """The queue of one version, and its runs under way. It does not hold the version: that goes when it is let go.

    Args:
        batcher: What waits.
        pacing: Sets delay and size by itself, where there is a latency target.
        parallel_runs: Long runs that the runtime has at a time.
        is_on_gpu: A run more may be under way than the runtime has: the next batch is assembled meanwhile.
    """

    batcher: Batcher[Job]
    pacing: Pacing | None = None
    parallel_runs: int = 1
    is_on_gpu: bool = False
    running_count: int = 0
    slot: AbstractContextManager[object] = NO_SLOT
    """Held by the run that a GPU has."""
    ends_s: dict[Run, float] = field(default_factory=dict)
    """When the long runs under way should be over."""
    timer_s: float = 0.0
    """When the timer goes off that counts; one that was set for another time does not."""

    @property
    def is_full(self) -> bool:
        """No further run may begin."""
        return self.running_count >= self.parallel_runs + self.is_on_gpu

    @property
    def inline_limit_s(self) -> float:
        """What a run on the loop thread may take just now."""
        is_busy = self.batcher.entry_count and self.parallel_runs > 1
        return _INLINE_LIMIT_BUSY_S if is_busy else INLINE_LIMIT_S

    def expect(self) -> None:
        """Tells the queue when its next run can begin, and how many there are at a time."""
        self.batcher.overlap = self.parallel_runs
        self.batcher.free_s = min(self.ends_s.values()) if len(self.ends_s) >= self.parallel_runs else 0.0

    def take(self, now_s: float) -> Taken[Job]:
        """Takes the next batch that is due."""
        if self.ends_s or self.batcher.under_way_s:
            self.batcher.under_way_s = sum(max(end_s - now_s, 0.0) for end_s in self.ends_s.values())
        return self.batcher.take(now_s)


def rows_past_queue(served: ServedVersion, kind: Kind, rows: int) -> int:
    """Tells how many rows of small requests of one kind to run at once, on the loop thread and without queueing.

    Args:
        served: Their version; nothing of it waits, and nothing of it runs.
        kind: What they have in common.
        rows: All that are there.

    Returns:
        0 where they have to queue: they are not small, they are to wait for others, or there are too many of them.
    """
    config, session = served.config, served.session
    is_to_wait = config.max_queue_delay_ms > 0 or config.p99_target_ms > 0
    if kind.key is None or is_to_wait or session.has_loops or session.provider == CUDA_PROVIDER:
        return 0
    costs, size, least = served.costs, kind.row_elements, kind.example_count
    if costs.floor_s(least, size) > _SMALL_S:
        return 0
    if rows == least:
        return rows
    all_s = costs.floor_s(rows, size)
    part = max(int(_PART_S * rows / max(all_s, _PART_S)), least)
    chosen = costs.batch_rows(min(rows, part), size, config.max_batch_size, config.batch_size_buckets)
    return chosen if all_s <= _TURN_S else 0


def new_lane(served: ServedVersion, room: Room) -> Lane:
    """Makes the lane of a version.

    Args:
        served: The version; its configuration bounds the queue, its costs decide how much of it runs at once.
        room: Bytes that may wait in all lanes together.
    """
    config, is_on_gpu = served.config, served.provider == CUDA_PROVIDER
    parallel_runs = max(config.parallel_runs, 1)
    has_target = config.p99_target_ms > 0 and config.max_batch_size > 0
    pacing = Pacing(config.p99_target_ms / 1e3, config.max_batch_size) if has_target else None
    slot = threading.Semaphore(parallel_runs) if is_on_gpu else NO_SLOT
    return Lane(_new_batcher(config, served.costs, pacing, room), pacing, parallel_runs, is_on_gpu, slot=slot)


def _new_batcher(config: ModelConfig, costs: CostTable, pacing: Pacing | None, room: Room) -> Batcher[Job]:
    parallel_runs = max(config.parallel_runs, 1)

    def choose_rows(job: Job, rows: int, under_way_s: float) -> int:
        size, most = job.row_elements, config.max_batch_size
        chosen = costs.batch_rows(rows, size, most, config.batch_size_buckets)
        if parallel_runs > 1 and costs.floor_s(chosen, size) > INLINE_LIMIT_S:
            # Shared out so that all the runs there may be at a time end together, it is answered sooner.
            row_s = costs.row_s(size)
            share = ceil((rows + (under_way_s / row_s if row_s else 0.0)) / parallel_runs)
            chosen = min(chosen, costs.batch_rows(share, size, most, config.batch_size_buckets))
        return chosen if pacing is None else min(chosen, pacing.max_rows)

    return Batcher(
        # The proof that rows are independent covers no more of them.
        max_batch_size=min(config.max_batch_size, MOST_ROWS),
        max_queue_delay_s=config.max_queue_delay_ms / 1e3 if pacing is None else pacing.delay_s,
        max_queued_examples=config.max_queued_examples,
        max_queued_bytes=config.max_queued_bytes,
        max_queued_s=config.max_queue_ms / 1e3 or inf,
        least_queued=config.least_queued_requests,
        room=room,
        choose_rows=choose_rows,
        parallel_runs=parallel_runs,
    )
