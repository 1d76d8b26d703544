"""Versions that crashed their workers: gone, and back when somebody wants them or their files change."""

from __future__ import annotations

import shutil
from pathlib import Path

import builders
from reconciler_world import World, world

from fitserve_service.aspirations import Aspirations
from fitserve_service.crashes import SetAside
from fitserve_service.loading.version_files import Marks
from fitserve_service.reconciler import Reconciler
from fitserve_service.registry import Registry
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import State


def aside(it: World, version: int = 1) -> SetAside:
    return SetAside("m", version, "it crashed", RepositorySource(it.root).version_stamp("m", version))


def test_a_version_that_is_set_aside_goes_and_the_one_below_takes_its_place(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        for version in (1, 2):
            builders.bare_version(tmp_path, "m", version, builders.scaled(version))
        it.look_until(lambda: it.states().get(2) is State.READY)
        lease = it.registry.lease("m", version=2)
        it.reconciler.set_aside(aside(it, 2))
        it.look()
        assert it.states()[2] is State.UNLOADING
        lease.release()
        it.until(v1=State.READY, v2=State.FAILED)
        for _ in range(3):
            it.look()

        assert it.states() == {1: State.READY, 2: State.FAILED}
        assert it.reason(2) == "it crashed"
        assert it.registry.lease("m").served.version == 1


def test_what_was_set_aside_comes_back_by_a_call_or_when_its_files_change(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        it.reconciler.set_aside(aside(it))
        it.until(v1=State.FAILED)
        it.load("m")
        it.until(v1=State.READY)
        it.look()
        assert it.outcomes == [("m", None)]

        it.reconciler.set_aside(aside(it))
        it.until(v1=State.FAILED)
        (path.folder / "model.onnx").write_bytes(builders.scaled(3.0))
        it.until(v1=State.READY)


def test_a_reconciler_that_starts_knows_what_was_set_aside(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        entry = aside(it)
        fresh = Reconciler(RepositorySource(tmp_path), it.loader, it.registry, set_aside=[entry])
        fresh.reconcile_once()
        assert it.states() == {1: State.FAILED}
        changed = SetAside("m", 1, "it crashed", (1, 2))
        other = Reconciler(RepositorySource(tmp_path), it.loader, Registry(), set_aside=[changed], rest_s=0.0)
        it.loader.gate.clear()
        other.reconcile_once()
        assert other._registry.states("m") == {1: State.LOADING}
        it.loader.gate.set()
        for reconciler in (fresh, other):
            reconciler.stop()


class Flipping(RepositorySource):
    """A repository whose place another folder takes in the middle of a look, as when its volume is unmounted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.other: Path | None = None

    def _marks(self, model: str) -> tuple[Marks, ...]:
        if self.other is not None and model == "b":
            self.root.rename(self.root.with_name("away"))
            self.other.rename(self.root)
            self.other = None
        return super()._marks(model)


def test_a_root_that_goes_in_the_middle_of_a_look_takes_no_model_with_it(tmp_path: Path) -> None:
    root, empty = tmp_path / "repository", tmp_path / "empty"
    for model in ("a", "b", "c"):
        builders.bare_version(root, model, 1, builders.identity())
    source = Flipping(root)
    wanted = Aspirations(source, Registry())
    wanted.look()
    empty.mkdir()
    source.other = empty
    wanted.look()
    assert [wanted.versions(model) for model in ("a", "b", "c")] == [[1], [1], [1]]
    assert "another folder, without a model, is in its place" in wanted.absence


def test_models_that_go_all_at_once_are_told_with_the_cure(tmp_path: Path) -> None:
    for model in ("a", "b"):
        builders.bare_version(tmp_path, model, 1, builders.identity())
    with world(tmp_path) as it:
        it.look_until(lambda: it.states("a") == it.states("b") == {1: State.READY})
        for model in ("a", "b"):
            shutil.rmtree(tmp_path / model)
        it.look()
        (text,) = it.registry.repository.texts
        assert "its 2 models went all at once" in text
        assert "fitserve-client unload MODEL" in text
        for model in ("a", "b"):
            it.unload(model)
        it.look_until(lambda: it.states("a") == it.states("b") == {1: State.UNLOADED})
