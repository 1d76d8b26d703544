"""The shadow on a loop of virtual time, with real sessions: it runs when nobody waits, and counts exactly."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_world import Free
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import builders
from virtual_loop import VirtualLoop

from fitserve_service import agreement
from fitserve_service import shadow as shadow_module
from fitserve_service.batcher import Priority
from fitserve_service.engine import BatchRecord, Completed, Engine, Job, Outcome
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.runs import Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.shadow import MAX_BUSY_S, MAX_LOOP_BYTES, Answered, Dropped, Shadow, ShadowCounts, ShadowKey
from fitserve_service.signature import Tensor
from fitserve_service.traffic import Draw, Traffic
from fitserve_service.version_policy import State


class World(VirtualLoop):
    """A model with versions 1 (stable) and 2 (shadow), an engine and a loop whose turns and clock the test makes."""

    def __init__(self, root: Path, share: float = 1.0, other: bytes | None = None) -> None:
        super().__init__()
        self.registry = Registry()
        labels = {"stable": 1, "shadow": 2}
        self.registry.set_present("m", [1, 2], labels, Traffic(shadow_share=share))
        contents = (builders.scaled(1.0), other or builders.scaled(2.0))
        for version, content in enumerate(contents, 1):
            path = builders.bare_version(root, "m", version, content)
            served = Loader("cpu").load(path, Overrides({}))
            served.costs = Free()
            self.registry.set_ready(served)
        self.engine = Engine(self, self, clock=lambda: self.now_s)
        self.shadow = Shadow(self.registry, self.engine, self, Draw(1), clock=lambda: self.now_s)
        self.live: list[int] = []
        self.shadowed: list[int] = []

    def post(self, callback: Callable[[], None]) -> None:
        self.call_soon(callback)

    def on_batch(self, served: ServedVersion, batch: BatchRecord) -> None:  # noqa: ARG002
        (self.live if served.version == 1 else self.shadowed).append(len(self.live) + len(self.shadowed))

    def settle(self) -> None:
        while not self.is_idle():
            self.turn()
            self.advance(0.01)

    def ask(self, rows: int = 1) -> None:
        """A live request, offered to the shadow once it is answered."""
        lease = self.registry.lease("m")
        inputs = {"x": Tensor("FP32", np.ones((rows, 2), np.float32))}

        def on_done(_: Job, outcome: Outcome) -> None:
            assert isinstance(outcome, Completed)
            self.shadow.offer(Answered(lease.served, inputs, ("y",), rows, outcome), ())

        prepared = Prepared.check(lease.served.signature, inputs, ("y",))
        self.engine.submit(Job(lease, prepared, None, Priority.PREDICT, on_done))

    @property
    def counts(self) -> ShadowCounts:
        return self.shadow.counts()[ShadowKey("m", 1, 2)]


class Threaded(World):
    """The same with a door for other threads: `run_until` takes what they post."""

    def post(self, callback: Callable[[], None]) -> None:
        VirtualLoop.post(self, callback)


def test_every_answered_request_is_run_again_and_compared(tmp_path: Path) -> None:
    world = World(tmp_path)
    for rows in (1, 2, 3):
        world.ask(rows)
        world.settle()
    counts = world.counts
    assert (counts.sampled_count, counts.compared_count, counts.example_count) == (3, 3, 6)
    assert (counts.failed_count, counts.dropped_count, counts.pending_count) == (0, 0, 0)
    assert counts.max_abs_diff == 1.0
    assert not counts.has_agreement
    assert len(world.shadowed) == 3


def test_the_shadow_waits_while_live_requests_do(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask()
    world.turn()
    assert (len(world.live), world.counts.pending_count) == (1, 1)
    for _ in range(5):
        world.ask()
        world.turn()
        assert world.shadowed == []
    world.settle()
    assert len(world.shadowed) == world.counts.compared_count == 6
    assert max(world.live) < min(world.shadowed)


def test_under_load_that_does_not_end_the_shadow_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    for _ in range(3):
        world.ask()
        world.turn()
    monkeypatch.setattr(world.engine, "is_idle", lambda: False)
    world.turn()
    world.advance(MAX_BUSY_S * 0.9)
    assert world.counts.pending_count == 3
    world.advance(MAX_BUSY_S * 0.2)
    assert (world.counts.sampled_count, world.counts.dropped[Dropped.BUSY], world.shadowed) == (3, 3, [])


def test_one_caller_who_asks_without_a_pause_has_every_request_shadowed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask()
    world.turn()
    # The next one arrives before the shadow looks, from then on right after it: only then is a moment without one.
    world.ask()
    for _ in range(112):
        world.turn()
        world.turn()
        world.ask()
    assert len(world.shadowed) > 100
    world.settle()
    assert (world.counts.sampled_count, world.counts.compared_count) == (114, 114)


def test_a_burst_is_shadowed_once_it_is_answered(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(500):
        world.ask()
    world.settle()
    assert (world.counts.sampled_count, world.counts.compared_count) == (500, 500)


def test_requests_wait_however_long_ago_the_server_was_idle(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.advance(MAX_BUSY_S * 10)
    for _ in range(5):
        world.ask()
        world.turn()
    world.settle()
    assert (world.counts.sampled_count, world.counts.compared_count) == (5, 5)


def test_only_so_many_bytes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "MAX_WAITING_BYTES", 4 * 5000)
    world = World(tmp_path)
    monkeypatch.setattr(world.engine, "is_idle", lambda: False)
    for _ in range(6):
        world.ask()
        world.turn()
    assert (world.counts.pending_count, world.counts.dropped[Dropped.FULL]) == (4, 2)
    monkeypatch.undo()
    world.settle()
    world.ask()
    world.settle()
    assert (world.counts.compared_count, world.counts.dropped_count) == (5, 2)


def test_one_larger_than_all_that_may_wait_is_run_where_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "MAX_WAITING_BYTES", 100)
    world = World(tmp_path)
    world.ask()
    world.settle()
    assert (world.counts.compared_count, world.counts.dropped_count) == (1, 0)


def test_large_answers_are_compared_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    compare = agreement.compare

    def observed(*arguments: Any) -> Any:
        threads.append(threading.get_ident() == threading.main_thread().ident)
        return compare(*arguments)

    monkeypatch.setattr(shadow_module, "compare", observed)
    world = Threaded(tmp_path)
    for rows in (MAX_LOOP_BYTES, 1):
        world.ask(rows)
    world.run_until(lambda: len(world.shadow.counts()) == 1 and world.counts.pending_count == 0)
    assert (world.counts.compared_count, world.counts.example_count) == (2, MAX_LOOP_BYTES + 1)
    assert threads == [False, True]


@pytest.mark.parametrize("change", ["moved", "deleted", "unloaded"])
def test_a_request_whose_shadow_is_gone_before_its_turn_is_dropped(tmp_path: Path, change: str) -> None:
    world = World(tmp_path)
    world.ask()
    world.turn()
    if change == "unloaded":
        world.registry.retire("m", 2, lambda: None)
        assert world.registry.states("m")[2] is State.UNLOADED
    else:
        labels = {"stable": 1, "shadow": 1} if change == "moved" else {"stable": 1}
        world.registry.set_present("m", [1, 2], labels, Traffic(shadow_share=1.0))
    world.settle()
    assert (world.counts.dropped[Dropped.GONE], world.shadowed) == (1, [])


def test_of_a_server_that_ends_what_waits_is_dropped(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(3):
        world.ask()
    world.turn()
    world.engine.begin_drain()
    world.settle()
    assert (world.counts.dropped[Dropped.DRAINING], world.counts.pending_count) == (3, 0)


def test_a_shadow_that_refuses_the_values_is_counted_as_failed(tmp_path: Path) -> None:
    world = World(tmp_path, other=builders.identity(shape=("B", 3)))
    world.ask()
    world.settle()
    assert (world.counts.sampled_count, world.counts.failed_count, world.shadowed) == (1, 1, [])


def test_answers_that_cannot_be_compared_are_counted_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shadow_module, "compare", lambda *_: 1 // 0)
    world = World(tmp_path)
    world.ask()
    world.settle()
    assert (world.counts.failed_count, world.counts.pending_count) == (1, 0)
    assert "answers of model 'm' could not be compared" in caplog.text


def test_only_so_many_pairs_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "MAX_PAIRS", 2)
    world = World(tmp_path)
    known = world.registry.lease("m", version=2)
    for version in (3, 4):
        world.registry.set_ready(replace(known.served, version=version))
    for version in (2, 3, 4):
        world.registry.set_present("m", [1, 2, 3, 4], {"stable": 1, "shadow": version}, Traffic(shadow_share=1.0))
        world.ask()
        world.settle()
    assert list(world.shadow.counts()) == [ShadowKey("m", 1, 3), ShadowKey("m", 1, 4)]


@pytest.mark.parametrize("replaced", [1, 2])
def test_what_a_pair_came_to_is_forgotten_once_another_instance_is_in_its_place(tmp_path: Path, replaced: int) -> None:
    world = World(tmp_path)
    for _ in range(3):
        world.ask()
        world.settle()
    world.registry.retire("m", replaced, lambda: None)
    world.registry.set_state("m", replaced, State.LOADING)
    assert world.counts.compared_count == 3
    path = builders.bare_version(tmp_path / "other", "m", replaced, builders.scaled(5.0))
    served = Loader("cpu").load(path, Overrides({}))
    served.costs = Free()
    world.registry.set_ready(served)
    assert world.shadow.counts() == {}
    world.ask()
    world.settle()
    assert (world.counts.sampled_count, world.counts.compared_count) == (1, 1)
    world.registry.retire("m", replaced, lambda: None)
    assert world.counts.sampled_count == 1


def test_no_instance_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask()
    world.settle()
    references = [weakref.ref(served) for served in world.registry.served("m").values()]
    for version in (1, 2):
        world.registry.retire("m", version, lambda: None)
    assert [reference() for reference in references] == [None, None]
    assert list(world.shadow.counts()) == [ShadowKey("m", 1, 2)]


def test_no_lease_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(4):
        world.ask()
        world.settle()
    world.registry.retire("m", 2, lambda: None)
    assert world.registry.states("m")[2] is State.UNLOADED
    world.ask()
    world.settle()
    assert world.counts.sampled_count == 4


def test_nothing_is_shadowed_without_a_share(tmp_path: Path) -> None:
    world = World(tmp_path, share=0.0)
    world.ask()
    world.settle()
    assert world.shadow.counts() == {}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["ask", "turn", "wait", "long"]), max_size=60), st.sampled_from([0.3, 1.0]))
def test_every_request_sampled_ends_in_exactly_one_count(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], share: float
) -> None:
    world = World(tmp_path_factory.mktemp("repository"), share)
    for step in steps:
        if step == "ask":
            world.ask()
        elif step == "turn":
            world.turn()
        else:
            world.advance(0.003 if step == "wait" else MAX_BUSY_S * 1.5)
        for counts in world.shadow.counts().values():
            assert counts.pending_count >= 0
    world.settle()
    for counts in world.shadow.counts().values():
        assert counts.pending_count == 0
        assert counts.sampled_count == counts.compared_count + counts.dropped_count
        assert counts.sampled_count <= steps.count("ask")
        assert counts.compared_count == counts.example_count
