"""A repository that is away unloads nothing; models that are removed go."""

from __future__ import annotations

import shutil
from pathlib import Path

import builders
import pytest
from reconciler_world import World, world

from fitserve_service.errors import Reason
from fitserve_service.loading.repository_presence import absence
from fitserve_service.version_policy import State

ROOT, OTHER = (1, 2), (1, 3)


@pytest.mark.parametrize(
    ("before", "now", "root_now", "is_away"),
    [
        ((), (), ROOT, False),
        (("a",), (), ROOT, False),
        (("a",), (), OTHER, True),
        (("a", "b"), (), ROOT, True),
        (("a", "b"), ("a",), OTHER, False),
        (("a", "b"), ("c",), OTHER, False),
    ],
)
def test_empty_in_one_look_or_in_another_place_is_away(
    before: tuple[str, ...], now: tuple[str, ...], root_now: tuple[int, int], is_away: bool
) -> None:
    assert bool(absence(before, now, ROOT, root_now)) is is_away


def filled(it: World, *models: str) -> None:
    for model in models:
        builders.bare_version(it.root, model, 1, builders.scaled())
    it.look_until(lambda: all(it.registry.is_ready(model) for model in models))


def test_an_empty_folder_in_the_place_of_the_repository_unloads_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    with world(root) as it:
        filled(it, "m")
        served = it.registry.served("m")[1]
        root.rename(tmp_path / "away")
        root.mkdir()
        for _ in range(3):
            it.look()
        assert it.registry.is_ready("m")
        assert caplog.text.count("is away, another folder, without a model, is in its place") == 1
        assert it.registry.repository.absence_count == 1
        it.load("m")
        it.look()
        error = it.outcomes[0][1]
        assert error is not None
        assert error.reason is Reason.LOAD_FAILED
        assert "the repository is away" in error.message
        assert "version 1, as loaded before, goes on answering" in error.message
        root.rmdir()
        (tmp_path / "away").rename(root)
        it.look()
        it.look()
        assert it.registry.repository.absence == ""
        assert it.registry.served("m")[1] is served


def test_models_that_all_go_at_once_stay_and_those_that_go_one_by_one_do_not(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        filled(it, "a", "b", "c")
        for model in "abc":
            (tmp_path / model).rename(tmp_path / f".{model}")
        it.look()
        assert all(it.registry.is_ready(model) for model in "abc")
        for model in "abc":
            (tmp_path / f".{model}").rename(tmp_path / model)
        it.look()
        for model in "abc":
            shutil.rmtree(tmp_path / model)
            it.look_until(lambda model=model: it.states(model) == {})  # type: ignore[misc]
        assert it.registry.snapshot() == ()


def test_a_version_that_is_to_be_loaded_waits_for_the_repository(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    with world(root) as it:
        filled(it, "m")
        it.unload("m")
        it.until(v1=State.UNLOADED)
        root.rename(tmp_path / "away")
        it.look()
        it.load("m")
        it.look()
        assert it.states() == {1: State.PENDING}
        assert "the repository cannot be read" in it.reason(1)
        (tmp_path / "away").rename(root)
        it.until(v1=State.READY)
