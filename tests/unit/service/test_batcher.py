"""The batcher's promises, under every order of arrivals, cancellations and ticks of a clock."""

from __future__ import annotations

from itertools import count
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fitserve_service.batcher import AGING_S, Batcher, Entry, Priority, Room


class Numbered(Entry):
    """An entry that is told apart by a number."""

    def __init__(self, item: int, key: str | None, rows: int, priority: Priority, size_bytes: int) -> None:
        super().__init__(key, rows, priority, size_bytes)
        self.item = item


def entry(
    item: int,
    key: str | None = "k",
    rows: int = 1,
    priority: Priority = Priority.PREDICT,
    latest_s: float | None = None,
    size_bytes: int = 0,
    run_s: float = 0.0,
) -> Numbered:
    made = Numbered(item, key, rows, priority, size_bytes)
    made.latest_s, made.run_s = latest_s, run_s
    made.end_s = inf if latest_s is None else latest_s + run_s
    return made


def batcher(
    size: int = 4,
    delay_s: float = 0.0,
    bound: int = 100,
    bytes_bound: int = 1 << 40,
    work_bound_s: float = 1e9,
    least: int = 1,
    room: Room | None = None,
) -> Batcher[Numbered]:
    return Batcher(
        max_batch_size=size,
        max_queue_delay_s=delay_s,
        max_queued_examples=bound,
        max_queued_bytes=bytes_bound,
        max_queued_s=work_bound_s,
        least_queued=least,
        room=room,
    )


def items(entries: list[Numbered]) -> list[int]:
    return [each.item for each in entries]


ROW_S = 2.0**-8
"""Sums of it are exact."""


class Machine(RuleBasedStateMachine):
    """Any schedule, held against a plain list of what is queued."""

    @initialize(
        size=st.sampled_from([0, 1, 3, 8]),
        delay_s=st.sampled_from([0.0, 0.01, 0.1]),
        bound=st.sampled_from([1, 6, 40]),
        bytes_bound=st.sampled_from([1, 60, 10_000]),
        work_bound_s=st.sampled_from([0.001, 0.25, 100.0]),
        least=st.sampled_from([1, 3]),
        room_bytes=st.sampled_from([90, 10_000]),
    )
    def begin(
        self,
        size: int,
        delay_s: float,
        bound: int,
        bytes_bound: int,
        work_bound_s: float,
        least: int,
        room_bytes: int,
    ) -> None:
        self.size, self.delay_s, self.bound = size, delay_s, bound
        self.bytes_bound, self.work_bound_s, self.least = bytes_bound, work_bound_s, least
        self.room, self.others_bytes = Room(room_bytes), 0
        self.batcher = batcher(size, delay_s, bound, bytes_bound, work_bound_s, least, self.room)
        self.now_s = 100.0
        self.queued: list[Numbered] = []
        self.left: set[int] = set()
        self.numbers = count()

    @rule(
        key=st.sampled_from(["a", "b", None]),
        rows=st.integers(0, 10),
        priority=st.sampled_from(Priority),
        patience_s=st.sampled_from([None, 0.0, 0.005, 0.3]),
        size_bytes=st.sampled_from([0, 10, 50]),
        row_s=st.sampled_from([0.0, 0.0, ROW_S]),
    )
    def add(
        self,
        key: str | None,
        rows: int,
        priority: Priority,
        patience_s: float | None,
        size_bytes: int,
        row_s: float,
    ) -> None:
        latest_s = None if patience_s is None else self.now_s + patience_s
        added = entry(next(self.numbers), key, rows, priority, latest_s, size_bytes, rows * row_s)
        held_bytes = self.room.held_bytes
        is_crowded = held_bytes > 0 and held_bytes + size_bytes > self.room.most_bytes
        is_refused = (bool(self.queued) and self._has_no_room(added)) or is_crowded
        assert self.batcher.add(added, self.now_s) is not is_refused
        if is_refused:
            assert self.batcher.why_refused(added, self.now_s)
        else:
            self.queued.append(added)

    @rule(size_bytes=st.sampled_from([0, 40, 90]))
    def others_wait(self, size_bytes: int) -> None:
        self.room.held_bytes += size_bytes - self.others_bytes
        self.others_bytes = size_bytes

    @rule(run_s=st.sampled_from([0.0, 0.004, 0.2]))
    def begin_run(self, run_s: float) -> None:
        self.batcher.free_s = self.now_s + run_s

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.queued))
        assert self.batcher.remove(chosen)
        assert not self.batcher.remove(chosen)
        self._take_out(chosen)

    @rule(step_s=st.sampled_from([0.001, 0.01, 0.1, 0.3]))
    def wait(self, step_s: float) -> None:
        self.now_s += step_s

    @rule()
    def take(self) -> None:
        before = list(self.queued)
        taken = self.batcher.take(self.now_s)
        for late in taken.late:
            assert late.latest_s is not None
            assert late.latest_s <= self.now_s
            self._take_out(late)
        for each in taken.batch:
            assert each.latest_s is None or each.latest_s > self.now_s
            self._take_out(each)
        if taken.batch:
            self._check_batch(taken.batch, before)
        else:
            self._check_nothing_due()

    @rule()
    def drain_everything(self) -> None:
        cleared = self.batcher.clear()
        assert sorted(items(cleared)) == sorted(items(self.queued))
        for each in cleared:
            self._take_out(each)

    @invariant()
    def counts_are_true(self) -> None:
        assert self.batcher.entry_count == len(self.queued)
        examples, size_bytes, work_s = self._held()
        assert self.batcher.queued_examples == examples
        assert self.batcher.queued_bytes == size_bytes
        assert self.room.held_bytes == size_bytes + self.others_bytes
        assert self.batcher.queued_s == work_s
        if len(self.queued) > 1:
            assert examples <= self.bound
            assert size_bytes <= self.bytes_bound
        if len(self.queued) > self.least and len([each for each in self.queued if each.run_s]) > 1:
            assert work_s <= self.work_bound_s

    @invariant()
    def due_is_the_oldest_and_its_delay(self) -> None:
        oldest_s = min((each.arrived_s for each in self.queued), default=None)
        assert self.batcher.due_s() == (None if oldest_s is None else oldest_s + self.delay_s)

    def _held(self) -> tuple[int, int, float]:
        examples = sum(max(each.example_count, 1) for each in self.queued)
        return examples, sum(each.size_bytes for each in self.queued), sum(each.run_s for each in self.queued)

    def _has_no_room(self, added: Numbered) -> bool:
        examples, size_bytes, work_s = self._held()
        begins_s = max(self.now_s, self.batcher.free_s) + work_s
        is_late = added.latest_s is not None and begins_s > added.latest_s
        return (
            examples + max(added.example_count, 1) > self.bound
            or size_bytes + added.size_bytes > self.bytes_bound
            or (work_s > 0 and work_s + added.run_s > self.work_bound_s and len(self.queued) >= self.least)
            or (work_s > 0 and is_late)
        )

    def _has_time(self, batch: list[Numbered]) -> bool:
        """Tells whether each of a batch is answered in time, as far as the work in it says."""
        end_s = self.now_s + sum(each.run_s for each in batch)
        return all(end_s <= each.end_s for each in batch)

    def _check_batch(self, batch: list[Numbered], before: list[Numbered]) -> None:
        head = batch[0]
        rows = sum(each.example_count for each in batch)
        assert len(batch) == 1 or rows <= self.size
        assert len(batch) == 1 or self._has_time([each for each in batch if each.run_s] or batch)
        assert len({(each.key, each.priority) for each in batch}) == 1
        if head.key is None:
            assert len(batch) == 1
        same_queue = [each for each in before if (each.key, each.priority) == (head.key, head.priority)]
        in_time = [each for each in same_queue if each.latest_s is None or each.latest_s > self.now_s]
        assert items(batch) == items(in_time[: len(batch)])
        waiting = [each for each in self.queued if (each.key, each.priority) == (head.key, head.priority)]
        if head.key is not None and waiting and waiting[0] in in_time:
            assert rows + waiting[0].example_count > self.size or not self._has_time([*batch, waiting[0]])
        is_served = head.priority is Priority.PREDICT or self.now_s - head.arrived_s >= AGING_S
        if not is_served and self.delay_s == 0:
            in_time_predicts = [each for each in before if each.priority is Priority.PREDICT and each in self.queued]
            assert not in_time_predicts

    def _check_nothing_due(self) -> None:
        heads = {(each.priority, each.key): each for each in reversed(self.queued)}
        for head in heads.values():
            assert self.delay_s > 0
            assert head.arrived_s + self.delay_s > self.now_s
            assert head.key is not None
            rows = sum(e.example_count for e in self.queued if (e.priority, e.key) == (head.priority, head.key))
            assert rows < self.size

    def _take_out(self, each: Numbered) -> None:
        assert each.item not in self.left
        self.left.add(each.item)
        self.queued.remove(each)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnySchedule = Machine.TestCase


def test_whatever_has_arrived_runs_together_and_nobody_waits() -> None:
    queue = batcher(size=4)
    for number in range(6):
        queue.add(entry(number), now_s=1.0)

    assert items(queue.take(1.0).batch) == [0, 1, 2, 3]
    assert items(queue.take(1.0).batch) == [4, 5]
    assert queue.take(1.0).batch == []
    assert queue.due_s() is None


def test_a_delay_waits_until_the_head_is_due_or_the_batch_is_full() -> None:
    queue = batcher(size=2, delay_s=0.1)
    queue.add(entry(0), now_s=1.0)

    assert queue.take(1.05).batch == []
    assert queue.due_s() == pytest.approx(1.1)
    queue.add(entry(1), now_s=1.05)
    assert items(queue.take(1.05).batch) == [0, 1]


@pytest.mark.parametrize("arrived_s", [0.1 + 0.2, 3.3, 1e6 + 0.1])
def test_at_its_own_due_time_a_batch_is_due_whatever_the_rounding(arrived_s: float) -> None:
    queue = batcher(delay_s=0.007)
    queue.add(entry(0), now_s=arrived_s)
    due_s = queue.due_s()

    assert due_s is not None
    assert items(queue.take(due_s).batch) == [0]


def test_an_entry_over_the_batch_size_runs_alone() -> None:
    queue = batcher(size=4)
    queue.add(entry(0, rows=9), now_s=1.0)
    queue.add(entry(1), now_s=1.0)

    assert items(queue.take(1.0).batch) == [0]
    assert items(queue.take(1.0).batch) == [1]


def test_without_a_batch_axis_every_entry_runs_alone() -> None:
    queue = batcher(size=0, delay_s=10.0)
    queue.add(entry(0), now_s=1.0)
    queue.add(entry(1), now_s=1.0)

    assert items(queue.take(1.0).batch) == [0]
    assert items(queue.take(1.0).batch) == [1]


def test_predict_goes_first_until_evaluate_has_aged() -> None:
    queue = batcher(size=1)
    queue.add(entry(0, priority=Priority.EVALUATE), now_s=1.0)
    queue.add(entry(1), now_s=1.1)
    queue.add(entry(2), now_s=1.2)

    assert items(queue.take(1.2).batch) == [1]
    assert items(queue.take(1.0 + AGING_S).batch) == [0]
    assert items(queue.take(1.0 + AGING_S).batch) == [2]


def test_a_late_entry_behind_the_head_is_dropped_on_the_way() -> None:
    queue = batcher()
    queue.add(entry(0), now_s=1.0)
    queue.add(entry(1, latest_s=1.5), now_s=1.0)
    queue.add(entry(2), now_s=1.0)
    taken = queue.take(1.5)

    assert items(taken.batch) == [0, 2]
    assert items(taken.late) == [1]


def test_an_empty_queue_takes_one_entry_over_the_bound_and_then_no_other() -> None:
    queue = batcher(bound=2)

    assert queue.add(entry(0, rows=50), now_s=1.0)
    assert not queue.add(entry(1), now_s=1.0)


def test_bytes_are_bounded_as_examples_are() -> None:
    queue = batcher(bytes_bound=100)

    assert queue.add(entry(0, size_bytes=60), now_s=1.0)
    assert not queue.add(refused := entry(1, size_bytes=60), now_s=1.0)
    assert queue.why_refused(refused, 1.0) == "its queue holds 100 bytes"
    assert queue.add(entry(2, size_bytes=40), now_s=1.0)
    queue.take(1.0)
    assert queue.add(entry(3, size_bytes=1000), now_s=1.0)


def test_no_more_work_waits_than_its_bound() -> None:
    queue = batcher(work_bound_s=0.05)

    assert queue.add(entry(0, run_s=0.03), now_s=1.0)
    assert not queue.add(refused := entry(1, run_s=0.03), now_s=1.0)
    expected = "1 requests wait that take about 30.0 ms, and its queue holds work for 50.0 ms"
    assert queue.why_refused(refused, 1.0) == expected
    assert queue.add(entry(2, run_s=0.01), now_s=1.0)


def test_some_may_wait_however_long_they_take() -> None:
    queue = batcher(work_bound_s=0.05, least=3)

    assert [queue.add(entry(number, run_s=10.0), now_s=1.0) for number in range(4)] == [True, True, True, False]


def test_who_would_begin_too_late_is_refused_at_once() -> None:
    queue = batcher()
    queue.free_s = 1.02
    queue.add(entry(0, run_s=0.03), now_s=1.0)

    assert not queue.add(refused := entry(1, latest_s=1.04, run_s=0.01), now_s=1.0)
    assert queue.why_refused(refused, 1.0) == "its run would begin in about 50.0 ms, too late for the deadline"
    assert queue.add(entry(2, latest_s=1.06, run_s=0.01), now_s=1.0)


def test_a_batch_is_no_longer_than_each_of_it_has_time_for() -> None:
    queue = batcher(size=100)
    # Alone it may begin one row's time from now at the latest: there is time for one more row in its batch.
    queue.add(entry(0, latest_s=1.0 + ROW_S, run_s=ROW_S), now_s=1.0)
    for number in range(1, 5):
        queue.add(entry(number, latest_s=9.0, run_s=ROW_S), now_s=1.0)

    assert items(queue.take(1.0).batch) == [0, 1]
    assert items(queue.take(1.0).batch) == [2, 3, 4]
    assert queue.queued_s == 0.0


def test_queues_that_share_a_room_are_bounded_together() -> None:
    room = Room(100)
    first, second = batcher(room=room), batcher(room=room)

    assert first.add(entry(0, size_bytes=70), now_s=1.0)
    assert not second.add(refused := entry(1, size_bytes=70), now_s=1.0)
    assert second.why_refused(refused, 1.0) == "the queues of all models hold 100 bytes"
    first.take(1.0)
    assert second.add(entry(2, size_bytes=700), now_s=1.0)
    second.clear()
    assert room.held_bytes == 0


def test_nobody_joins_a_batch_that_is_too_long_for_him() -> None:
    queue = batcher(size=100)
    queue.add(entry(0, run_s=2 * ROW_S), now_s=1.0)
    queue.add(entry(1, latest_s=1.0 + 2 * ROW_S, run_s=ROW_S), now_s=1.0)

    assert items(queue.take(1.0 + ROW_S).batch) == [0]
    assert items(queue.take(1.0 + ROW_S).batch) == [1]


def test_an_empty_queue_holds_no_work_whatever_the_rounding() -> None:
    queue = batcher()
    for number, run_s in enumerate((0.1, 0.2, 0.3)):
        queue.add(entry(number, run_s=run_s), now_s=1.0)
    queue.take(1.0)

    assert (queue.entry_count, queue.queued_s) == (0, 0.0)
