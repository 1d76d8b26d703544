"""What a reconciler does because there are other workers."""

from __future__ import annotations

from pathlib import Path

from tests import builders
from tests.reconciler_world import world

from fitserve_service.switching.views import View
from fitserve_service.version_policy import State


def test_versions_that_others_answer_with_are_loaded_and_let_go_again(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        for version in (1, 2):
            builders.bare_version(tmp_path, "m", version, builders.scaled())
        it.until(v1=State.UNLOADED, v2=State.READY)
        it.reconciler.serve_also({"m": [1]})
        it.until(v1=State.READY, v2=State.READY)
        it.reconciler.serve_also({})
        it.until(v1=State.UNLOADED, v2=State.READY)


def test_a_model_is_shown_once_what_is_wanted_of_it_is_loaded(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.loader.gate.clear()
        told: list[object] = []
        it.reconciler.show("m", told.append)
        it.look()
        assert told == []
        it.loader.gate.set()
        it.look_until(lambda: it.states() == {1: State.READY} and told == [None])


def test_a_version_that_is_wanted_again_while_all_answer_with_it_is_not_loaded_anew(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        memory = memoryview(bytearray(8)).cast("Q")
        views = it.registry.share(memory)
        path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        served = it.registry.served("m")[1]
        views.prepare(1, {"m": View({1: served.content_digest}, {}, 1)})
        memory[0] = 1
        assert it.registry.is_ready("m")
        aside = tmp_path / ".aside"
        path.folder.rename(aside)
        it.until(v1=State.UNLOADING)
        aside.rename(path.folder)
        it.until(v1=State.READY)
        assert it.registry.served("m")[1] is served
