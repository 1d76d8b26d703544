"""Queues of one model version: which requests run next, and which of them together.

A state machine without I/O, threads or a clock of its own: time comes in as an argument. Requests of the same key
(same inputs, same shapes behind the batch axis, same outputs wanted) may run together; whatever has arrived runs, and
nobody waits unless `max_queue_delay_s` asks for it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Generic, TypeVar

AGING_S = 0.25
"""A request of low priority that has waited this long takes its turn by age alone, so that it is never starved."""


class Priority(IntEnum):
    """Lower runs first."""

    PREDICT = 0
    EVALUATE = 1


class Entry:
    """What can be queued: a batcher fills in what it is queued by.

    Args:
        key: Entries with equal keys may run together; None runs alone.
        example_count: Rows it brings, >= 0.
        priority: Its class.
        size_bytes: Memory that it holds while it waits.

    Attributes:
        latest_s: When its run must begin at the latest, so that its caller still waits at the end; None: never.
        end_s: When its caller stops waiting.
        run_s: What its run should take, as far as what comes after it has to wait for that; 0: unknown, or nothing.
        arrived_s: When it was added; set by the batcher.
        is_queued: Set by the batcher.
    """

    __slots__ = ("arrived_s", "end_s", "example_count", "is_queued", "key", "latest_s", "priority", "run_s",
                 "size_bytes")  # fmt: skip

    def __init__(self, key: Hashable, example_count: int, priority: Priority, size_bytes: int = 0) -> None:
        self.key = key
        self.example_count = example_count
        self.priority = priority
        self.size_bytes = size_bytes
        self.latest_s: float | None = None
        self.end_s = inf
        self.run_s = 0.0
        self.arrived_s = 0.0
        self.is_queued = False


EntryT = TypeVar("EntryT", bound=Entry)


@dataclass(slots=True)
class Taken(Generic[EntryT]):
    """What left the queues at once.

    Args:
        batch: Runs together now; empty where nothing is due.
        late: Entries met on the way whose deadline has passed: never to be run.
    """

    batch: list[EntryT]
    late: list[EntryT]


@dataclass(slots=True, eq=False)
class Room:
    """Bytes that may wait in all the queues that share it; where none wait, any single entry may.

    Args:
        most_bytes: The bound.
        held_bytes: What waits now.
    """

    most_bytes: int = sys.maxsize
    held_bytes: int = 0


class Batcher(Generic[EntryT]):
    """Queues that are bounded in examples, bytes and time, one per priority and key, each first in, first out.

    Invariants: `queued_examples`, `queued_bytes` and `queued_s` are the sums over queued entries (one without rows
    counts as one example). They are at most their bounds as an entry is added, the time as `wait_s` with the runs that
    share it, but that an empty queue takes any single entry, and as to time `least_queued` of them. An entry leaves
    exactly once, by `take` or by `remove`. One that would be late by what already waits is not taken in.

    Args:
        max_batch_size: Most examples in one batch; 0: every entry runs alone.
        max_queue_delay_s: How long the oldest entry may wait for a fuller batch.
        max_queued_examples: Bound of the queue.
        max_queued_bytes: Bound of the queue.
        max_queued_s: Bound of the queue: how long all that waits should take to run.
        least_queued: Entries that may wait however long they take to run.
        room: Shared with other queues.
        choose_rows: Gives how many of the rows that wait behind an entry to run at once, itself among them, by how long
            the runs under way still take together. What waits is counted as far as all runs at a time could take it.
        parallel_runs: Most runs at a time.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_queue_delay_s: float,
        max_queued_examples: int,
        max_queued_bytes: int = sys.maxsize,
        max_queued_s: float = inf,
        least_queued: int = 1,
        room: Room | None = None,
        choose_rows: Callable[[EntryT, int, float], int] = lambda _, rows, __: rows,
        parallel_runs: int = 1,
    ) -> None:
        self._choose_rows = choose_rows
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queued_examples = max_queued_examples
        self._max_queued_bytes = max_queued_bytes
        self._max_queued_s = max_queued_s
        self._least_queued = least_queued
        self._most_counted = max_batch_size * parallel_runs
        self._room = room or Room()
        self._queues: dict[tuple[Priority, Hashable], deque[EntryT]] = {}
        self.queued_examples = 0
        self.queued_bytes = 0
        self.queued_s = 0.0
        self.entry_count = 0
        self.free_s = 0.0
        """When the next run should be able to begin."""
        self.overlap = 1
        """Runs under way at a time, as it was seen last: what waits is over in so small a part of its time."""
        self.under_way_s = 0.0
        """How long the runs under way still take, all together."""

    @property
    def wait_s(self) -> float:
        """How long all that waits should take to run, with so many runs at a time as there were last."""
        return self.queued_s / self.overlap

    def pace(self, max_queue_delay_s: float) -> None:
        """Changes how long the oldest entry may wait."""
        self._max_queue_delay_s = max_queue_delay_s

    def add(self, entry: EntryT, now_s: float) -> bool:
        """Queues an entry; False where there is no room for it, or it would be late by what already waits."""
        weight = entry.example_count or 1
        room = self._room
        # In a row, without a call in between: ten thousand requests a second come by here.
        if self.entry_count and (
            self.queued_examples + weight > self._max_queued_examples
            or self.queued_bytes + entry.size_bytes > self._max_queued_bytes
            or (self.queued_s and self._is_too_long(entry, now_s))
        ):
            return False
        if (held_bytes := room.held_bytes) and held_bytes + entry.size_bytes > room.most_bytes:
            return False
        room.held_bytes = held_bytes + entry.size_bytes
        if self._max_batch_size == 0:
            entry.key = None
        entry.arrived_s = now_s
        entry.is_queued = True
        queue = self._queues.get((entry.priority, entry.key))
        if queue is None:
            queue = self._queues[entry.priority, entry.key] = deque()
        queue.append(entry)
        self.queued_examples += weight
        self.queued_bytes += entry.size_bytes
        self.queued_s += entry.run_s
        self.entry_count += 1
        return True

    def why_refused(self, entry: EntryT, now_s: float) -> str:
        """Says why there was no room for an entry that has just been refused, for whoever sent it."""
        if self.queued_examples + (entry.example_count or 1) > self._max_queued_examples:
            return f"its queue holds {self._max_queued_examples} examples"
        if self.queued_bytes + entry.size_bytes > self._max_queued_bytes:
            return f"its queue holds {self._max_queued_bytes} bytes"
        if self._room.held_bytes + entry.size_bytes > self._room.most_bytes:
            return f"the queues of all models hold {self._room.most_bytes} bytes"
        if self._is_too_much(entry) and self.entry_count >= self._least_queued:
            waits = f"{self.entry_count} requests wait that take about {self.wait_s * 1e3:.1f} ms"
            return f"{waits}, and its queue holds work for {self._max_queued_s * 1e3:.1f} ms"
        return f"its run would begin in about {(self._turn_s(now_s) - now_s) * 1e3:.1f} ms, too late for the deadline"

    def stop_joining(self) -> None:
        """Has every entry run alone from now on, those that wait already too."""
        self._max_batch_size = self._most_counted = 0
        waiting = sorted((entry for queue in self._queues.values() for entry in queue), key=lambda each: each.arrived_s)
        self._queues.clear()
        for entry in waiting:
            entry.key = None
            self._queues.setdefault((entry.priority, None), deque()).append(entry)

    def remove(self, entry: EntryT) -> bool:
        """Takes a cancelled entry out; False where it has left already."""
        if not entry.is_queued:
            return False
        queue = self._queues[(entry.priority, entry.key)]
        queue.remove(entry)
        self._left((entry,), queue)
        return True

    def clear(self) -> list[EntryT]:
        """Takes everything out, each queue in its order."""
        return [self._pop(queue) for queue in list(self._queues.values()) for _ in range(len(queue))]

    def take(self, now_s: float) -> Taken[EntryT]:
        """Takes the next batch that is due.

        The queue whose head comes first (by priority, then by age; an aged head by age alone) gives entries in order
        until the next does not fit. It is due when it is full, or its head has waited `max_queue_delay_s`.
        """
        late: list[EntryT] = []
        for queue in self._by_turn(now_s):
            late += self._take_late(queue, now_s)
            if queue and self._is_due(queue, now_s):
                return Taken(self._take_batch(queue, now_s, late), late)
        return Taken([], late)

    def due_s(self) -> float | None:
        """When the next batch is due, as far as waiting alone decides; None where nothing is queued."""
        heads = [queue[0].arrived_s for queue in self._queues.values()]
        return min(heads) + self._max_queue_delay_s if heads else None

    def _is_too_long(self, entry: EntryT, now_s: float) -> bool:
        """What waits and what comes are too much work together, or what waits leaves it no time."""
        return (self.entry_count >= self._least_queued and self._is_too_much(entry)) or (
            entry.latest_s is not None and self._turn_s(now_s) > entry.latest_s
        )

    def _is_too_much(self, entry: EntryT) -> bool:
        return (self.queued_s + entry.run_s) / self.overlap > self._max_queued_s

    def _turn_s(self, now_s: float) -> float:
        """When what comes now should begin to run."""
        return max(now_s, self.free_s) + self.wait_s

    def _by_turn(self, now_s: float) -> list[deque[EntryT]]:
        if len(self._queues) <= 1:
            return list(self._queues.values())

        def turn(queue: deque[EntryT]) -> tuple[int, float]:
            head = queue[0]
            is_aged = now_s - head.arrived_s >= AGING_S
            return (Priority.PREDICT if is_aged else head.priority, head.arrived_s)

        return sorted(self._queues.values(), key=turn)

    def _is_due(self, queue: deque[EntryT], now_s: float) -> bool:
        # The same sum as in due_s: rounded otherwise, a timer could go off and find nothing due.
        if queue[0].key is None or queue[0].arrived_s + self._max_queue_delay_s <= now_s:
            return True
        rows = 0
        for entry in queue:
            rows += entry.example_count
            if rows >= self._max_batch_size:
                return True
        return False

    def _take_late(self, queue: deque[EntryT], now_s: float) -> list[EntryT]:
        late = []
        while queue and _is_late(queue[0], now_s):
            late.append(self._pop(queue))
        return late

    def _take_batch(self, queue: deque[EntryT], now_s: float, late: list[EntryT]) -> list[EntryT]:
        room = self._rows_of(queue)
        first = queue.popleft()
        batch = [first]
        room -= first.example_count
        work_s, end_s = first.run_s, first.end_s
        while queue and first.key is not None:
            entry = queue[0]
            if _is_late(entry, now_s):
                late.append(self._pop(queue))
                continue
            if entry.example_count > room:
                break
            if entry.run_s:
                # All of a batch is answered when all of it has run: it is no longer than each has time for.
                work_s, end_s = work_s + entry.run_s, min(end_s, entry.end_s)
                if now_s + work_s > end_s:
                    break
            room -= entry.example_count
            batch.append(queue.popleft())
        self._left(batch, queue)
        return batch

    def _rows_of(self, queue: deque[EntryT]) -> int:
        """How many rows of a queue to run at once; one request may bring more than that, and is never split."""
        if len(queue) == 1 or not self._max_batch_size:
            return self._max_batch_size
        rows = 0
        for entry in queue:
            rows += entry.example_count
            if rows >= self._most_counted:
                rows = self._most_counted
                break
        return min(self._choose_rows(queue[0], rows, self.under_way_s), self._max_batch_size)

    def _pop(self, queue: deque[EntryT]) -> EntryT:
        entry = queue.popleft()
        self._left((entry,), queue)
        return entry

    def _left(self, entries: Sequence[EntryT], queue: deque[EntryT]) -> None:
        """Counts entries of one queue out, which has them no more."""
        size_bytes = 0
        for entry in entries:
            entry.is_queued = False
            size_bytes += entry.size_bytes
            self.queued_examples -= entry.example_count or 1
            self.queued_s -= entry.run_s
        self.queued_bytes -= size_bytes
        self._room.held_bytes -= size_bytes
        self.entry_count -= len(entries)
        if not self.entry_count:
            # Differences of floats leave dust behind: an empty queue has none.
            self.queued_s = 0.0
        if not queue:
            self._queues.pop((entries[0].priority, entries[0].key), None)


def _is_late(entry: Entry, now_s: float) -> bool:
    return entry.latest_s is not None and entry.latest_s <= now_s
