"""A registry that answers by what all workers agree on."""

from __future__ import annotations

import array
from dataclasses import replace
from pathlib import Path

import pytest
from tests import builders

from fitserve_service.agreed_views import AgreedViews
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.statistics import VersionStatistics
from fitserve_service.switching.views import View
from fitserve_service.version_policy import State


class World:
    """A worker's registry with versions of one model, and the number that the parent writes."""

    def __init__(self, root: Path) -> None:
        self.registry = Registry()
        self._memory = array.array("Q", [0])
        self.views: AgreedViews = self.registry.share(memoryview(self._memory))
        self._loaded = Loader("cpu").load(builders.bare_version(root, "m", 1, builders.scaled()), Overrides({}))
        self.freed: list[int] = []

    def version(self, number: int, digest: str = "a") -> ServedVersion:
        return replace(self._loaded, version=number, content_digest=digest, statistics=VersionStatistics())

    def load(self, number: int, digest: str = "a") -> ServedVersion:
        served = self.version(number, digest)
        self.registry.set_ready(served)
        return served

    def retire(self, number: int) -> None:
        self.registry.retire("m", number, lambda: self.freed.append(number))

    def prepare(self, number: int, *versions: int, digest: str = "a") -> bool:
        view = View(dict.fromkeys(versions, digest), {}, max(versions, default=None))
        return self.views.prepare(number, {"m": view})

    def switch(self, number: int) -> None:
        self._memory[0] = number

    def answer(self) -> ServedVersion:
        lease = self.registry.lease("m")
        lease.release()
        return lease.served


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def reason(world: World, version: int | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        world.registry.lease("m", version=version)
    return caught.value


def test_what_is_loaded_answers_from_the_switch_on_and_not_before(world: World) -> None:
    world.load(1)
    assert world.prepare(1, 1)
    assert reason(world).reason is Reason.NOT_READY
    assert "loaded in this worker, not yet in every one" in str(reason(world, 1))
    assert not world.registry.is_ready("m", 1)
    world.switch(1)
    assert world.answer().version == 1
    assert world.registry.is_ready("m", 1)


def test_what_answers_is_held_until_the_next_switch(world: World) -> None:
    world.load(1)
    world.prepare(1, 1)
    world.switch(1)
    assert world.answer().version == 1
    world.load(2)
    world.retire(1)
    candidate = world.views.candidate("m")
    assert (candidate.ready, candidate.held) == ({2: "a"}, {1: "a"})
    assert (world.answer().version, world.freed) == (1, [])
    assert [(each.version, each.state) for each in world.registry.model("m").versions] == [
        (1, State.READY),
        (2, State.LOADING),
    ]
    world.prepare(2, 2)
    assert world.answer().version == 1
    world.switch(2)
    assert (world.answer().version, world.freed) == (2, [1])


def test_a_number_that_was_not_prepared_for_changes_nothing(world: World) -> None:
    world.load(1)
    world.prepare(1, 1)
    world.switch(1)
    world.load(2)
    world.prepare(2, 2)
    # The round is over, and another one that is not for this worker was made.
    world.switch(3)
    assert world.answer().version == 1


def test_what_is_not_here_cannot_be_prepared_and_what_was_prepared_before_is_let_go(world: World) -> None:
    world.load(1)
    world.load(2)
    assert world.prepare(1, 1, 2)
    assert not world.prepare(2, 1, 3)
    assert not world.prepare(2, 1, digest="b")
    world.retire(1)
    assert world.freed == [1]


def test_renewed_files_answer_from_the_switch_on(world: World) -> None:
    old = world.load(1)
    world.prepare(1, 1)
    world.switch(1)
    new = world.version(1, "b")
    assert world.registry.renew(world.answer(), new)
    assert world.answer() is old
    candidate = world.views.candidate("m")
    assert (candidate.ready, candidate.held) == ({1: "b"}, {1: "a"})
    world.prepare(2, 1, digest="b")
    world.switch(2)
    assert world.answer() is new


def test_the_same_content_loaded_anew_takes_the_place_at_once(world: World) -> None:
    world.load(1)
    world.prepare(1, 1)
    world.switch(1)
    new = world.version(1)
    world.registry.renew(world.answer(), new)
    assert world.answer() is new
    assert world.views.candidate("m").held == {}


def test_a_version_that_is_wanted_again_before_it_went_is_kept(world: World) -> None:
    world.load(1)
    world.prepare(1, 1)
    world.switch(1)
    assert world.answer().version == 1
    world.retire(1)
    assert world.views.candidate("m").ready == {}
    assert world.views.reclaim("m", 1)
    assert world.views.candidate("m").ready == {1: "a"}
    assert not world.views.reclaim("m", 1)
    world.prepare(2)
    world.switch(2)
    world.registry.snapshot()
    assert (world.registry.states("m"), world.freed) == ({1: State.READY}, [])


def test_a_model_that_is_gone_answers_until_all_have_let_it_go(world: World) -> None:
    world.load(1)
    world.prepare(1, 1)
    world.switch(1)
    world.retire(1)
    world.registry.set_present("m", [], {})
    assert world.answer().version == 1
    world.prepare(2)
    world.switch(2)
    assert reason(world).reason in (Reason.NOT_READY, Reason.MODEL_NOT_FOUND)
    assert world.freed == [1]


def test_a_label_and_the_default_move_with_the_switch(world: World) -> None:
    world.registry.set_present("m", [1, 2], {"stable": 1})
    world.load(1)
    world.load(2)
    world.views.prepare(1, {"m": View({1: "a", 2: "a"}, {"stable": 1}, 1)})
    world.switch(1)
    assert world.answer().version == 1
    world.registry.set_present("m", [1, 2], {"stable": 2})
    assert world.views.candidate("m").labels == {"stable": 2}
    assert (world.answer().version, world.registry.labels("m")) == (1, {"stable": 1})
    world.views.prepare(2, {"m": View({1: "a", 2: "a"}, {"stable": 2}, 2)})
    world.switch(2)
    assert (world.answer().version, world.registry.lease("m", label="stable").served.version) == (2, 2)


def test_what_was_prepared_is_held_before_its_switch_and_after_it_until_it_is_made(world: World) -> None:
    world.load(1)
    world.prepare(1, 1)
    world.retire(1)
    world.load(2)
    assert world.views.candidate("m").held == {1: "a"}
    world.switch(1)
    assert world.views.candidate("m").held == {1: "a"}
    assert world.answer().version == 1
    told: list[dict[int, str]] = []
    world.prepare(2, 1, 2)
    world.registry.subscribe(lambda _: told.append(dict(world.views.candidate("m").held)))
    # Another round in the place of the one that did not come to a switch.
    world.prepare(3, 2)
    world.switch(3)
    assert world.answer().version == 2
    assert told[-1] == {}
