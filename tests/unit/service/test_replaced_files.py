"""Other files behind a name and a number are another version: they are loaded, and the old ones serve until then."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import builders
import numpy as np
import pytest
from reconciler_world import World, break_version, world

from fitserve_contract.repository import VersionPath
from fitserve_service.errors import Reason
from fitserve_service.loader import Loader
from fitserve_service.loading.replaced_files import ReplacedFiles
from fitserve_service.model_config import Overrides
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.version_policy import State


def swap(first: Path, second: Path) -> None:
    aside = first.with_name(".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def factor_of(it: World, version: int = 1, model: str = "m") -> float:
    lease = it.registry.lease(model, version=version)
    try:
        found = lease.served.session.run({"x": Tensor("FP32", np.ones((1, 2), np.float32))}, ["y"], None)
    finally:
        lease.release()
    return float(found["y"].array[0, 0])


def test_folders_that_were_swapped_serve_what_is_in_them(tmp_path: Path) -> None:
    for version, factor in ((1, 2.0), (2, 3.0)):
        builders.bare_version(tmp_path, "m", version, builders.scaled(factor))
    (tmp_path / "m" / "model.toml").write_text("keep_versions = 2")
    with world(tmp_path) as it:
        it.until(v1=State.READY, v2=State.READY)
        it.look()
        old = it.registry.lease("m", version=1)
        swap(tmp_path / "m" / "1", tmp_path / "m" / "2")
        it.look_until(lambda: (factor_of(it, 1), factor_of(it, 2)) == (3.0, 2.0))
        # Whoever has leased the old one is answered by it.
        assert old.served is not it.registry.served("m")[1]
        old.release()


def test_a_version_that_was_made_anew_with_the_same_sizes_and_times_is_loaded_anew(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled(2.0))
    with world(tmp_path) as it:
        it.until(v1=State.READY)
        for factor in (3.0, 4.0):
            old = [(file, file.stat()) for file in (path.folder / "model.onnx", path.folder)]
            shutil.rmtree(path.folder)
            builders.bare_version(tmp_path, "m", 1, builders.scaled(factor))
            for file, stat in old:
                os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
                assert file.is_dir() or file.stat().st_size == stat.st_size
            it.look_until(lambda factor=factor: factor_of(it) == factor)  # type: ignore[misc]


@pytest.mark.parametrize("is_published", [False, True])
def test_a_folder_that_only_looks_like_another_is_not_loaded_anew(tmp_path: Path, is_published: bool) -> None:
    if is_published:
        folder = builders.publish_version(tmp_path, "m", builders.scaled()).folder
    else:
        folder = builders.bare_version(tmp_path, "m", 1, builders.scaled()).folder
    with world(tmp_path) as it:
        it.until(v1=State.READY)
        served = it.registry.served("m")[1]
        it.load("m")
        it.look_until(lambda: served in it.reconciler._loads._replaced._known)
        folder.rename(tmp_path / "aside")
        shutil.copytree(tmp_path / "aside", folder)
        for _ in range(4):
            it.look()
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 2)
        assert it.registry.served("m")[1] is served


def test_new_files_that_do_not_load_leave_the_old_ones_serving_and_a_load_tells(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled(2.0))
    with world(tmp_path) as it:
        it.until(v1=State.READY)
        it.look_until(lambda: it.registry.served("m")[1] in it.reconciler._loads._replaced._known)
        break_version(path)
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 1)
        error = it.outcomes[0][1]
        assert error is not None
        assert error.reason is Reason.LOAD_FAILED
        assert "version 1: " in error.message
        assert "not taken over, what was loaded goes on: m version 1: file 'model.onnx'" in caplog.text
        assert factor_of(it) == 2.0
        (path.folder / "model.onnx").write_bytes(builders.scaled(5.0))
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 2)
        assert it.outcomes[1][1] is None
        assert factor_of(it) == 5.0


def test_a_version_that_goes_while_its_new_files_load_stays_gone(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled(2.0))
    with world(tmp_path) as it:
        it.until(v1=State.READY)
        it.look()
        it.loader.gate.clear()
        (path.folder / "model.onnx").write_bytes(builders.scaled(5.0))
        it.load("m")
        it.look()
        it.unload("m")
        it.look_until(lambda: it.states() == {1: State.UNLOADED})
        it.loader.gate.set()
        it.look_until(lambda: len(it.outcomes) == 2)
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 3)
        assert factor_of(it) == 5.0
        it.unload("m")
        it.look_until(lambda: it.states() == {1: State.UNLOADED})


def test_a_caller_who_asks_has_files_read_that_look_as_before(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled(2.0))
    with world(tmp_path) as it:
        it.until(v1=State.READY)
        reads: list[str] = []
        holds = it.source.holds
        it.source.holds = lambda *which: reads.append(which[0]) or holds(*which)  # type: ignore[func-returns-value, method-assign, assignment]
        it.look()
        it.load("m")
        it.look_until(lambda: it.outcomes == [("m", None)])
        assert reads == ["m"]
        (path.folder / "model.onnx").write_bytes(builders.scaled(3.0))
        it.load("m")
        it.look_until(lambda: len(it.outcomes) == 2)
        assert factor_of(it) == 3.0


def test_files_that_moved_while_they_were_loaded_are_not_served(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled(2.0))
    with world(tmp_path) as it:
        seen: list[float] = []
        it.registry.subscribe(lambda _: seen.append(factor_of(it)) if it.registry.is_ready("m") else None)
        load = it.loader.load

        def load_then_swap(where: VersionPath, overrides: Overrides) -> ServedVersion:
            served = load(where, overrides)
            if not seen:
                (path.folder / "model.onnx").write_bytes(builders.scaled(3.0))
                it.loader.load = load  # type: ignore[method-assign]
            return served

        it.loader.load = load_then_swap  # type: ignore[method-assign]
        it.look_until(lambda: bool(seen))
        assert set(seen) == {3.0}


def test_no_version_is_kept_by_what_is_known_of_its_files(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.scaled())
    files = ReplacedFiles()
    served = Loader("cpu").load(path, Overrides({}))
    files.remember(served, (), Overrides({}))
    reference = weakref.ref(served)
    gc.disable()
    try:
        del served
        assert reference() is None
    finally:
        gc.enable()
