"""Rounds of a switch: all workers hold what is to answer before the number is written."""

from __future__ import annotations

from typing import Any

from fitserve_service.switching.rounds import Rounds
from fitserve_service.switching.views import Candidate, View


def has(*versions: int, held: tuple[int, ...] = ()) -> Candidate:
    return Candidate(dict.fromkeys(versions, "a"), dict.fromkeys(held, "a"), {}, sorted({*versions, *held}))


class World:
    """The parent's side, and what it told whom."""

    def __init__(self, *workers: str) -> None:
        self.proposed: list[tuple[str, int, dict[str, Any]]] = []
        self.committed: list[int] = []
        self.joined: list[set[str]] = []
        self.rounds = Rounds[str](self._propose, self.committed.append, self.joined.append)
        for worker in workers:
            self.rounds.report(worker, "m", has(1))
        self.rounds.join(workers)
        self.accept_all()

    def _propose(self, worker: str, number: int, views: dict[str, Any]) -> None:
        self.proposed.append((worker, number, views))

    def accept_all(self) -> None:
        while self.proposed:
            worker, number, _ = self.proposed.pop(0)
            self.rounds.accept(worker, number, is_prepared=True)

    def default(self) -> int | None:
        return self.rounds.views["m"].default


def test_the_first_workers_begin_together() -> None:
    world = World("a", "b")
    assert (world.committed, world.joined, world.default()) == ([1], [{"a", "b"}], 1)


def test_the_switch_is_made_once_the_last_worker_holds_the_version() -> None:
    world = World("a", "b")
    world.rounds.report("a", "m", has(2, held=(1,)))
    assert world.proposed == []
    world.rounds.report("b", "m", has(2, held=(1,)))
    (first, number, views), (second, _, _) = world.proposed
    assert {first, second} == {"a", "b"}
    assert View.of(views["m"]).default == 2
    world.rounds.accept(first, number, is_prepared=True)
    assert (world.committed, world.default()) == ([1], 1)
    world.rounds.accept(second, number, is_prepared=True)
    assert (world.committed, world.default()) == ([1, 2], 2)


def test_a_worker_that_dies_does_not_hold_the_others_up() -> None:
    world = World("a", "b")
    for worker in "ab":
        world.rounds.report(worker, "m", has(2, held=(1,)))
    world.rounds.accept("a", 2, is_prepared=True)
    world.rounds.leave("b")
    assert (world.committed, world.default()) == ([1, 2], 2)


def test_a_worker_that_does_not_come_to_a_version_holds_it_back_until_it_leaves() -> None:
    world = World("a", "b")
    world.rounds.report("a", "m", has(2, held=(1,)))
    assert world.default() == 1
    world.rounds.leave("b")
    world.accept_all()
    assert world.default() == 2


def test_what_cannot_be_prepared_is_not_switched_to_and_proposed_anew_later() -> None:
    world = World("a", "b")
    for worker in "ab":
        world.rounds.report(worker, "m", has(2, held=(1,)))
    world.proposed.clear()
    world.rounds.accept("a", 2, is_prepared=True)
    world.rounds.accept("b", 2, is_prepared=False)
    # A late yes to the round that is over counts for nothing.
    world.rounds.accept("a", 2, is_prepared=True)
    assert (world.committed, world.proposed) == ([1], [])
    world.rounds.go_on()
    world.accept_all()
    assert (world.committed, world.default()) == ([1, 3], 2)


def test_a_new_worker_joins_with_all_that_the_others_answer_and_not_before() -> None:
    world = World("a")
    world.rounds.report("b", "m", has(2))
    world.rounds.join(["b"])
    assert world.proposed == []
    assert world.rounds.missing("b") == {"m": [1]}
    world.rounds.report("b", "m", has(1, 2))
    ((worker, _, views),) = world.proposed
    assert (worker, View.of(views["m"]).default) == ("b", 1)
    world.accept_all()
    assert world.rounds.members == {"a", "b"}


def test_a_caller_is_answered_once_what_was_reported_is_switched_to() -> None:
    world, told = World("a", "b"), []
    world.rounds.after(lambda: told.append("at once"))
    assert told == ["at once"]
    for worker in "ab":
        world.rounds.report(worker, "m", has(2, held=(1,)))
    world.rounds.after(lambda: told.append("later"))
    assert told == ["at once"]
    world.accept_all()
    assert told == ["at once", "later"]


def test_a_version_that_is_barred_answers_no_more_though_all_hold_it() -> None:
    world = World("a", "b")
    world.rounds.report("a", "m", has(held=(1,)))
    world.rounds.report("b", "m", has(1))
    world.rounds.bar([("m", 1)])
    world.accept_all()
    assert world.rounds.views == {}


def test_workers_without_anything_in_common_are_told_apart() -> None:
    rounds = World().rounds
    rounds.report("a", "m", has(2))
    rounds.report("b", "m", has(1))
    rounds.report("a", "n", has(1))
    rounds.report("b", "n", has(1))
    assert rounds.apart(["a", "b"]) == {"m": [1, 2]}
