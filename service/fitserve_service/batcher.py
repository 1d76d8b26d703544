"""Queues of one model version: which requests run next, and which of them together.

A state machine without I/O, threads or a clock of its own: time comes in as an argument. Requests of the same key
(same inputs, same shapes behind the batch axis, same outputs wanted) may run together; whatever has arrived runs, and
nobody waits unless `max_queue_delay_s` asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")

AGING_S = 0.25
"""A request of low priority that has waited this long takes its turn by age alone, so that it is never starved."""


class Priority(IntEnum):
    """Lower runs first."""

    PREDICT = 0
    EVALUATE = 1


@dataclass(slots=True, eq=False)
class Entry(Generic[Item]):
    """One queued request.

    Args:
        item: What is queued.
        key: Entries with equal keys may run together; None runs alone.
        example_count: Rows it brings, >= 0.
        priority: Its class.
        deadline_s: When its caller stops waiting; None: never.
        arrived_s: When it was added; set by the batcher.
    """

    item: Item
    key: Hashable
    example_count: int
    priority: Priority
    deadline_s: float | None
    arrived_s: float = 0.0
    is_queued: bool = field(default=False, init=False)


class Batcher(Generic[Item]):
    """Bounded queues, one per priority and key, each first in, first out.

    Invariants: `queued_examples` is the sum over queued entries and at most `max_queued_examples` (an empty queue takes
    any single entry); an entry leaves exactly once, by `take`, `expired` or `remove`.

    Args:
        max_batch_size: Most examples in one batch; 0: every entry runs alone.
        max_queue_delay_s: How long the oldest entry may wait for a fuller batch.
        max_queued_examples: Bound of the queue.
    """

    def __init__(self, *, max_batch_size: int, max_queue_delay_s: float, max_queued_examples: int) -> None:
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queued_examples = max_queued_examples
        self._queues: dict[tuple[Priority, Hashable], deque[Entry[Item]]] = {}
        self._alone_count = 0
        self.queued_examples = 0
        self.entry_count = 0

    def add(self, entry: Entry[Item], now_s: float) -> bool:
        """Queues an entry; False where the queue is full. An entry without rows counts as one."""
        weight = max(entry.example_count, 1)
        if self.entry_count and self.queued_examples + weight > self._max_queued_examples:
            return False
        if entry.key is None or self._max_batch_size == 0:
            self._alone_count += 1
            entry.key = ("alone", self._alone_count)
        entry.arrived_s = now_s
        entry.is_queued = True
        self._queues.setdefault((entry.priority, entry.key), deque()).append(entry)
        self.queued_examples += weight
        self.entry_count += 1
        return True

    def remove(self, entry: Entry[Item]) -> bool:
        """Takes a cancelled entry out; False where it has left already."""
        if not entry.is_queued:
            return False
        queue = self._queues[(entry.priority, entry.key)]
        queue.remove(entry)
        self._left(entry, queue)
        return True

    def expired(self, now_s: float) -> list[Entry[Item]]:
        """Takes out every entry whose deadline has passed."""
        late = [
            e for queue in self._queues.values() for e in queue if e.deadline_s is not None and e.deadline_s <= now_s
        ]
        for entry in late:
            self.remove(entry)
        return late

    def take(self, now_s: float) -> list[Entry[Item]]:
        """Takes the next batch that is due; empty where none is.

        The queue whose head comes first (by priority, then by age; an aged head by age alone) gives entries in order
        until the next does not fit. It is due when it is full, or its head has waited `max_queue_delay_s`.
        """
        for queue in self._by_turn(now_s):
            batch = list(self._filling(queue))
            is_full = len(batch) < len(queue) or self._rows(batch) >= self._max_batch_size
            if is_full or now_s - queue[0].arrived_s >= self._max_queue_delay_s:
                for entry in batch:
                    queue.popleft()
                    self._left(entry, queue)
                return batch
        return []

    def due_s(self) -> float | None:
        """When the next batch is due, as far as waiting alone decides; None where nothing is queued."""
        heads = [queue[0].arrived_s for queue in self._queues.values()]
        return min(heads) + self._max_queue_delay_s if heads else None

    def _by_turn(self, now_s: float) -> list[deque[Entry[Item]]]:
        if len(self._queues) == 1:
            return list(self._queues.values())

        def turn(queue: deque[Entry[Item]]) -> tuple[int, float]:
            head = queue[0]
            is_aged = now_s - head.arrived_s >= AGING_S
            return (Priority.PREDICT if is_aged else head.priority, head.arrived_s)

        return sorted(self._queues.values(), key=turn)

    def _filling(self, queue: deque[Entry[Item]]) -> Iterator[Entry[Item]]:
        room = self._max_batch_size
        for index, entry in enumerate(queue):
            room -= entry.example_count
            if index and room < 0:
                return
            yield entry

    @staticmethod
    def _rows(batch: list[Entry[Item]]) -> int:
        return sum(entry.example_count for entry in batch)

    def _left(self, entry: Entry[Item], queue: deque[Entry[Item]]) -> None:
        entry.is_queued = False
        self.queued_examples -= max(entry.example_count, 1)
        self.entry_count -= 1
        if not queue:
            del self._queues[(entry.priority, entry.key)]
