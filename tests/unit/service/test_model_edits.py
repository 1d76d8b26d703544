"""Edits of a model's folder wait for their version, and are seen before they are answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import pytest
from reconciler_world import break_version, world

from fitserve_service.errors import Reason, ServiceError
from fitserve_service.version_policy import State


def test_an_edit_waits_for_its_version_and_is_shown_before_it_is_answered(tmp_path: Path) -> None:
    labels = tmp_path / "m" / "labels.json"
    with world(tmp_path) as it:
        for factor in (1.0, 2.0):
            builders.publish_version(tmp_path, "m", builders.scaled(factor))
        it.until(v1=State.UNLOADED, v2=State.READY)
        it.loader.gate.clear()
        seen: list[tuple[bool, ServiceError | None, dict[str, int]]] = []

        def done(error: ServiceError | None) -> None:
            seen.append((labels.exists(), error, dict(it.registry.labels("m"))))

        it.reconciler.edit("m", lambda: _write(labels, '{"stable": 1}'), done, version=1)
        it.look()
        it.look()
        assert (it.states(), seen, labels.exists()) == ({1: State.LOADING, 2: State.READY}, [], False)
        it.loader.gate.set()
        it.look_until(lambda: bool(seen))
        assert seen == [(True, None, {"stable": 1})]
        it.until(v1=State.READY, v2=State.READY)
        labels.write_text("{}")
        it.until(v1=State.UNLOADED, v2=State.READY)


def test_an_edit_that_cannot_be_made_says_why_and_the_next_one_is_made(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.publish_version(tmp_path, "m", builders.scaled())
        broken = builders.publish_version(tmp_path, "m", builders.scaled())
        break_version(broken)
        it.until(v1=State.READY, v2=State.FAILED)

        def fail() -> None:
            raise RuntimeError("a defect")

        def edit(model: str, version: int, apply: Callable[[], None] = lambda: None) -> None:
            it.reconciler.edit(model, apply, lambda error: it.outcomes.append((model, error)), version=version)

        for model, version in (("none", 0), ("m", 9), ("m", 2)):
            edit(model, version)
        edit("m", 0, fail)
        edit("m", 0)
        it.look()
        reasons = [error.reason if error else None for _, error in it.outcomes]
        assert reasons == [
            Reason.MODEL_NOT_FOUND,
            Reason.VERSION_NOT_FOUND,
            Reason.MODEL_FAILED,
            Reason.INTERNAL,
            None,
        ]
        assert all("a defect" not in error.message for _, error in it.outcomes if error)
        it.unload("m")
        edit("m", 1)
        it.look_until(lambda: len(it.outcomes) == 7)
        assert set(it.states().values()) <= {State.UNLOADED, State.FAILED}


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize("place", [".", "m"])
def test_while_a_folder_is_away_its_labels_are_neither_read_nor_written(tmp_path: Path, place: str) -> None:
    root = tmp_path / "repository"
    builders.publish_version(root, "m", builders.scaled())
    made: list[str] = []
    with world(root) as it:
        it.until(v1=State.READY)
        (root / place).resolve().rename(tmp_path / "away")
        (root / place).resolve().mkdir()
        it.reconciler.edit("m", lambda: made.append("m"), lambda error: it.outcomes.append(("m", error)))
        it.look()
        ((_, error),) = it.outcomes
        assert error is not None
        assert error.reason is Reason.REPOSITORY_READ_ONLY
        assert "another folder, without a " in error.message
        (root / place).resolve().rmdir()
        (tmp_path / "away").rename((root / place).resolve())
        assert made == []
        it.reconciler.edit("m", lambda: made.append("m"), lambda error: it.outcomes.append(("m", error)))
        it.look()
        assert (made, it.outcomes[1:]) == (["m"], [("m", None)])
