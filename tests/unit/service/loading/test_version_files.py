"""Every change of a version's files is seen, also behind links; what lies outside of the repository is not."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import builders
import pytest

from fitserve_contract.repository import version_path
from fitserve_contract.repository_view import RepositoryRoot
from fitserve_service.loading.version_files import MAX_ENTRIES, NO_MARKS, SeenFiles, see_files
from fitserve_service.loading.version_reader import VersionReader
from fitserve_service.source import RepositorySource


def file(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def link(path: Path, target: str | Path) -> Path:
    """Makes a link, or flips it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.next")
    aside.symlink_to(target)
    return aside.rename(path)


def seen(root: Path, outside: Path | None = None) -> SeenFiles:
    return see_files(version_path(RepositoryRoot(root, outside), "m", 1))


def names(found: SeenFiles) -> list[str]:
    return [entry.name for entry in found.entries]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Makes a version with a file, a file and a folder behind Kubernetes' links, and a blob behind a link."""
    root = tmp_path / "repository"
    version = root / "store" / "abc"
    file(version / "plain")
    for name in ("model.onnx", "weights/w"):
        file(version / "..1" / name)
    link(version / "..data", "..1")
    link(version / "model.onnx", "..data/model.onnx")
    link(version / "weights", "..data/weights")
    link(version / "blob", "../../blobs/b")
    file(root / "blobs" / "b")
    link(root / "m" / "1", "../store/abc")
    return root


def in_version(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change(root / "store" / "abc")


def moved_data(version: Path) -> None:
    for name in ("model.onnx", "weights/w"):
        file(version / "..2" / name)
    link(version / "..data", "..2")


def moved_version(root: Path) -> None:
    os.rename(root / "store" / "abc", root / "store" / "def")
    (root / "store" / "abc").mkdir()
    link(root / "m" / "1", "../store/abc")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file": in_version(lambda version: file(version / "plain", b"y")),
    "a file behind a link": in_version(lambda version: file(version / "..1" / "model.onnx", b"y")),
    "a file in a linked folder": in_version(lambda version: file(version / "..1" / "weights" / "w", b"y")),
    "a new file in a linked folder": in_version(lambda version: file(version / "..1" / "weights" / "v")),
    "a flip of ..data": in_version(moved_data),
    "a blob": lambda root: file(root / "blobs" / "b", b"y"),
    "a link to another blob": lambda root: (
        file(root / "blobs" / "c"),
        link(root / "store" / "abc" / "blob", "../../blobs/c"),
    ),
    "a blob that goes": lambda root: (root / "blobs" / "b").unlink(),
    "another folder of the version": moved_version,
    "a folder put outside": lambda root: link(root / "m" / "1", root.parent),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen_and_nothing_else(root: Path, change: str) -> None:
    before = seen(root)
    assert seen(root) == before
    assert names(before) == ["blob", "model.onnx", "plain", "weights", "weights/w"]
    assert before.size("weights/w") == before.size("blob") == 1

    CHANGES[change](root)

    assert seen(root).stamp != before.stamp


def test_a_link_to_nothing_is_seen_to_be_put_right(root: Path) -> None:
    (root / "blobs" / "b").unlink()
    before = seen(root)
    file(root / "blobs" / "b")
    assert before.stamp != seen(root).stamp
    link(root / "m" / "1", "gone")
    assert seen(root) == SeenFiles(NO_MARKS)


def test_folders_outside_of_the_repository_are_not_listed(root: Path, tmp_path: Path) -> None:
    file(tmp_path / "outside" / "secret" / "f")
    link(root / "store" / "abc" / "out", tmp_path / "outside")
    assert "out" in names(seen(root))
    assert "out/secret" not in names(seen(root))
    assert "out/secret/f" in names(seen(root, tmp_path / "outside"))
    for target in (tmp_path / "outside", "../blobs/b"):
        link(root / "m" / "1", target)
        assert (names(seen(root)), seen(root).problem) == ([], "")


def test_links_in_circles_and_too_many_names_end(root: Path) -> None:
    version = root / "store" / "abc"
    link(version / "itself", ".")
    link(version / "loop", "loop")
    link(version / "above", "../..")
    assert {"itself", "loop", "above/m/1"} <= set(names(seen(root)))
    for number in range(8):
        for name in "abcd":
            link(version / f"d{number}" / name, f"../d{number + 1}")
    (version / "d8").mkdir()
    assert seen(root).problem == f"expected at most {MAX_ENTRIES} files in a version, found more"


@contextmanager
def powerless() -> Iterator[Path]:
    """Gives a folder to somebody who may read what everybody may, also where the tests are run by root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
        shutil.rmtree(folder)


def test_folders_that_may_not_be_read_keep_nobody_waiting() -> None:
    with powerless() as root:
        file(root / "m" / "1" / "model.onnx")
        (root / "m" / "1" / "lost+found").mkdir(mode=0)
        before = seen(root)
        assert (before.problem, names(before)) == ("", ["lost+found", "model.onnx"])
        file(root / "m" / "1" / "model.onnx", b"y")
        assert seen(root).stamp != before.stamp
        for mode in (0, 0o444):
            (root / "m" / "1").chmod(mode)
            assert (seen(root).problem, seen(root).folder != NO_MARKS) == ("", True)
        # Nothing can be said of what lies there.
        (root / "m").chmod(0)
        assert seen(root) == SeenFiles(NO_MARKS)


def test_a_folder_for_root_alone_beside_versions_or_in_a_published_one_is_passed_over() -> None:
    with powerless() as root:
        path = builders.publish_version(root, "m", builders.identity())
        for folder in (root, root / "m", path.folder):
            (folder / "lost+found").mkdir(mode=0)
        source = RepositorySource(root)
        assert {name: (each.versions, each.problem) for name, each in source.scan().items()} == {"m": ((1,), "")}
        with path.view() as view:
            assert VersionReader(view).read("model.onnx", 1 << 20) == builders.identity()


def test_a_model_toml_that_may_not_be_read_is_named() -> None:
    with powerless() as root:
        builders.bare_version(root, "m", 1, builders.identity())
        file(root / "m" / "model.toml").chmod(0)
        problem = RepositorySource(root).scan()["m"].problem
        assert problem.startswith("model 'm': 'm/model.toml' cannot be read: Permission denied; let user ")


def test_more_files_than_a_version_may_have_are_refused_and_seen_to_go(root: Path) -> None:
    for number in range(MAX_ENTRIES + 1):
        file(root / "store" / "abc" / "many" / str(number))
    refused = seen(root)
    assert refused.is_refused
    assert "at most 4096 files" in refused.problem
    shutil.rmtree(root / "store" / "abc" / "many")
    assert not seen(root).is_refused
