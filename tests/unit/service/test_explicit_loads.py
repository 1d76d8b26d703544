"""Calls that load and unload: they hold until the next one, and are answered when it is done."""

from __future__ import annotations

from pathlib import Path

import builders
from reconciler_world import world

from fitserve_service.errors import Reason
from fitserve_service.version_policy import State


def test_an_explicit_unload_holds_until_an_explicit_load(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        it.unload("m")
        it.until(v1=State.UNLOADED)
        it.look()
        builders.bare_version(tmp_path, "m", 2, builders.scaled())
        it.look()
        assert it.states() == {1: State.UNLOADED, 2: State.UNLOADED}
        assert it.outcomes == [("m", None)]
        it.load("m")
        it.until(v1=State.UNLOADED, v2=State.READY)
        it.look()

        assert it.outcomes == [("m", None), ("m", None)]


def test_unload_is_answered_once_the_last_lease_is_back(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        lease = it.registry.lease("m")
        it.unload("m")
        it.look()
        it.look()
        assert it.outcomes == []
        lease.release()
        it.look()

        assert it.outcomes == [("m", None)]


def test_unload_of_what_is_still_loading_is_answered_when_it_has_gone(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.loader.gate.clear()
        it.look()
        it.unload("m")
        it.look()
        assert it.outcomes == []
        it.loader.gate.set()
        it.look_until(lambda: it.outcomes == [("m", None)])

        assert it.states() == {1: State.UNLOADED}


def test_load_of_a_failed_version_tries_again_and_tells_why_not(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        path = builders.bare_version(tmp_path, "m", 1, b"garbage")
        it.until(v1=State.FAILED)
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 1)
        error = it.outcomes[0][1]
        assert error is not None
        assert error.reason is Reason.LOAD_FAILED
        assert error.message.startswith("model 'm' could not be loaded: version 1: file 'model.onnx': expected")

        (path.folder / "model.onnx").write_bytes(builders.scaled())
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 2)
        assert it.outcomes[1] == ("m", None)
        assert it.states() == {1: State.READY}


def test_unknown_models_are_not_found_to_load_and_nothing_to_unload(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        it.load("ghost")
        it.unload("ghost")
        it.look()

        (_, loading), unloading = it.outcomes
        assert loading is not None
        assert (loading.reason, loading.message) == (
            Reason.MODEL_NOT_FOUND,
            "model 'ghost': not in the repository; list its models with: fitserve-client models",
        )
        assert unloading == ("ghost", None)
