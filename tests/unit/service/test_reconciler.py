"""What the server holds follows what the repository says, and what serves goes on serving."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import builders
import pytest
from reconciler_world import WAIT_S, break_version, world

from fitserve_contract.repository import VersionPath
from fitserve_service.loader import Loader
from fitserve_service.model_config import Overrides
from fitserve_service.reconciler import Reconciler
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.source import RepositorySource
from fitserve_service.version_policy import State


def test_a_new_version_is_ready_before_the_old_one_goes(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.publish_version(tmp_path, "m", builders.scaled(1.0))
        it.until(v1=State.READY)
        it.loader.gate.clear()
        builders.publish_version(tmp_path, "m", builders.scaled(2.0))
        it.look()
        it.look()
        assert it.states() == {1: State.READY, 2: State.LOADING}
        lease = it.registry.lease("m")
        it.loader.gate.set()
        it.until(v1=State.UNLOADING, v2=State.READY)
        assert lease.served.version == 1
        assert it.registry.lease("m").served.version == 2
        lease.release()

        assert it.states() == {1: State.UNLOADED, 2: State.READY}


def test_a_version_that_fails_leaves_the_old_one_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with world(tmp_path) as it:
        builders.publish_version(tmp_path, "m", builders.scaled())
        it.until(v1=State.READY)
        break_version(builders.publish_version(tmp_path, "m", builders.scaled()))
        it.until(v1=State.READY, v2=State.FAILED)
        it.look()

        assert it.states() == {1: State.READY, 2: State.FAILED}
        assert it.registry.lease("m").served.version == 1
        assert it.reason(2).startswith("file 'model.onnx': expected sha256")
        assert "failed: m version 2: file 'model.onnx': expected sha256" in caplog.text


def test_one_model_that_does_not_load_leaves_the_others_alone(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "bad", 1, b"garbage")
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.look_until(lambda: it.states("bad") == {1: State.FAILED} and it.states() == {1: State.READY})
        it.look()

        assert it.reconciler.wait_until_settled(0)


def test_labels_and_keep_versions_decide_what_is_loaded(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        for version in range(1, 6):
            builders.bare_version(tmp_path, "m", version, builders.scaled(version))
        (tmp_path / "m" / "labels.json").write_text('{"stable": 2}')
        (tmp_path / "m" / "model.toml").write_text("keep_versions = 2")
        it.look_until(lambda: [v for v, s in it.states().items() if s is State.READY] == [2, 4, 5])

        assert it.registry.lease("m").served.version == 2
        (tmp_path / "m" / "model.toml").write_text("versions = [1]")
        it.look_until(lambda: [v for v, s in it.states().items() if s is State.READY] == [1, 2])


def test_a_file_that_was_half_copied_is_served_once_it_is_whole(tmp_path: Path) -> None:
    whole = builders.scaled()
    with world(tmp_path) as it:
        path = builders.bare_version(tmp_path, "m", 1, whole[: len(whole) // 2])
        it.until(v1=State.FAILED)
        it.look()
        assert it.states() == {1: State.FAILED}
        (path.folder / "model.onnx").write_bytes(whole)

        it.until(v1=State.READY)


def test_a_typing_error_in_model_toml_keeps_the_new_version_out_until_it_is_put_right(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        (tmp_path / "m" / "model.toml").write_text("keep_version = 2")
        builders.bare_version(tmp_path, "m", 2, builders.scaled())
        it.until(v1=State.READY, v2=State.FAILED)
        assert it.reason(2).startswith("m/model.toml: expected one of")
        (tmp_path / "m" / "model.toml").write_text("keep_versions = 2")

        it.until(v1=State.READY, v2=State.READY)


def test_a_repository_that_goes_away_leaves_what_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "repository"
    with world(root) as it:
        builders.bare_version(root, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        root.rename(tmp_path / "aside")
        it.look()
        it.look()
        assert it.registry.is_ready("m")
        assert caplog.text.count("cannot be read (No such file or directory): what is loaded goes on") == 1
        (tmp_path / "aside").rename(root)
        builders.bare_version(root, "m", 2, builders.scaled())

        it.until(v1=State.UNLOADED, v2=State.READY)


def test_a_model_that_is_removed_is_unloaded_and_forgotten(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())
        it.until(v1=State.READY)
        shutil.rmtree(tmp_path / "m")
        it.look_until(lambda: it.states() == {})

        assert it.registry.snapshot() == ()


def test_what_a_failed_load_depended_on_is_forgotten_with_its_version(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        for version in (1, 2):
            builders.bare_version(tmp_path, "m", version, b"garbage")
        it.until(v1=State.FAILED, v2=State.FAILED)
        it.look()
        assert set(it.reconciler._loads._attempts._attempts) == {("m", 1), ("m", 2)}
        shutil.rmtree(tmp_path / "m" / "2")
        it.until(v1=State.FAILED)
        assert set(it.reconciler._loads._attempts._attempts) == {("m", 1)}
        shutil.rmtree(tmp_path / "m")
        it.look()

        assert it.reconciler._loads._attempts._attempts == {}


def test_a_fault_while_loading_is_told_without_its_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled())

        def fail(path: VersionPath, overrides: Overrides) -> ServedVersion:
            raise RuntimeError(f"secret {path} {overrides}")

        it.loader.load = fail  # type: ignore[method-assign]
        it.until(v1=State.FAILED)

        assert it.reason(1) == "internal error while loading; the log has it"
        assert "secret" in caplog.text


@pytest.mark.slow
def test_two_hundred_models_load_and_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    names = [f"m{index}" for index in range(200)]
    for index, name in enumerate(names):
        builders.bare_version(tmp_path, name, 1, builders.linear(seed=index))
    builders.bare_version(tmp_path, "bad", 1, b"garbage")
    registry = Registry()
    reconciler = Reconciler(RepositorySource(tmp_path), Loader("cpu"), registry, poll_interval_s=0.05)
    reconciler.start()
    try:
        assert reconciler.wait_until_settled(120)
        assert all(registry.is_ready(name) for name in names)
        assert not registry.is_ready("bad")
        answered = threading.Event()
        reconciler.unload("m7", lambda _: answered.set())
        assert answered.wait(WAIT_S)
        assert not registry.is_ready("m7")
    finally:
        reconciler.stop()


def test_the_thread_survives_a_look_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.scaled())
    source = RepositorySource(tmp_path)
    scan = source.scan
    failures = iter([ValueError("unforeseen")])

    def failing_scan() -> object:
        for failure in failures:
            raise failure
        return scan()

    source.scan = failing_scan  # type: ignore[assignment, method-assign]
    registry = Registry()
    reconciler = Reconciler(source, Loader("cpu"), registry, poll_interval_s=0.01)
    reconciler.start()
    try:
        assert reconciler.wait_until_settled(WAIT_S)
        assert registry.is_ready("m")
        assert "reconciling failed; trying again in 0.01 s" in caplog.text
    finally:
        reconciler.stop()


def test_an_old_stable_version_serves_until_the_new_one_does(tmp_path: Path) -> None:
    """Neither of the two is the highest version, which the policy keeps: the label alone holds them."""
    with world(tmp_path) as it:
        for factor in (1.0, 2.0, 3.0):
            builders.publish_version(tmp_path, "m", builders.scaled(factor))
        (tmp_path / "m" / "labels.json").write_text('{"stable": 1}')
        it.until(v1=State.READY, v2=State.UNLOADED, v3=State.READY)
        it.loader.gate.clear()
        (tmp_path / "m" / "labels.json").write_text('{"stable": 2}')
        it.look()
        it.look()
        assert it.states() == {1: State.READY, 2: State.LOADING, 3: State.READY}
        assert it.registry.lease("m").served.version == 1
        it.loader.gate.set()
        it.look_until(lambda: it.states()[2] is State.READY)
        assert it.registry.lease("m").served.version == 2


def test_a_server_that_starts_with_a_bad_highest_version_serves_the_one_below(tmp_path: Path) -> None:
    with world(tmp_path) as it:
        builders.bare_version(tmp_path, "m", 1, builders.scaled(1))
        builders.bare_version(tmp_path, "m", 2, builders.scaled(2))
        bad = builders.bare_version(tmp_path, "m", 3, b"garbage")
        it.until(v1=State.UNLOADED, v2=State.READY, v3=State.FAILED)

        (bad.folder / "model.onnx").write_bytes(builders.scaled(3))
        it.until(v1=State.UNLOADED, v2=State.UNLOADED, v3=State.READY)


def test_loads_that_end_cost_no_further_look_at_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        builders.bare_version(tmp_path, f"m{number}", 1, builders.scaled())
    builders.bare_version(tmp_path, "m0", 2, b"garbage")
    source, looks = RepositorySource(tmp_path), []
    honest = source.scan
    monkeypatch.setattr(source, "scan", lambda: looks.append(1) or honest())
    registry = Registry()
    reconciler = Reconciler(source, Loader("cpu"), registry, poll_interval_s=3600.0, rest_s=0.0)
    reconciler.start()
    assert reconciler.wait_until_settled(WAIT_S)
    reconciler.stop()

    # The version below the one that failed was loaded in its place, too.
    assert registry.states("m0") == {1: State.READY, 2: State.FAILED}
    assert all(registry.states(f"m{number}") == {1: State.READY} for number in range(1, 20))
    assert len(looks) == 1
