"""What a repository on disk says, and what is read again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import builders
import pytest

from fitserve_contract.repository import publishing
from fitserve_service import source as source_module
from fitserve_service.loading.version_files import Marks
from fitserve_service.source import ModelSource, RepositorySource

LONG_AGO_NS = 10**18


class Clock:
    """Seconds that go on when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_only_folders_named_by_a_positive_integer_are_versions(tmp_path: Path) -> None:
    for name in ("1", "3", "10", "0", "01", "-1", "1.0", "two", "٣", ".staging-x", "1000000000000000000000"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "7").write_text("a file")
    (tmp_path / "m" / "8").symlink_to("1")
    for name in (".hidden", "with space", "n" * 129):
        (tmp_path / name / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no model")

    sources = RepositorySource(tmp_path).scan()
    assert {name: source.versions for name, source in sources.items()} == {"m": (1, 3, 8, 10)}


def test_labels_and_overrides_are_read_with_the_versions(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    (tmp_path / "m" / "labels.json").write_text('{"stable": 1}')
    (tmp_path / "m" / "model.toml").write_text("keep_versions = 2")
    source = RepositorySource(tmp_path).scan()["m"]

    assert (source.versions, source.labels, source.problem) == ((1,), {"stable": 1}, "")
    assert source.overrides.values == {"keep_versions": 2}


def test_a_change_is_seen_and_a_folder_that_rests_is_not_read_again(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    clock = Clock()
    source = RepositorySource(tmp_path, clock=clock)
    first = source.scan()["m"]
    clock.now_s += 3.0

    assert source.scan()["m"] is first
    builders.bare_version(tmp_path, "m", 2, builders.identity())
    assert source.scan()["m"].versions == (1, 2)
    clock.now_s += 3.0
    (tmp_path / "m" / "labels.json").write_text('{"canary": 1}')
    assert source.scan()["m"].labels == {"canary": 1}
    clock.now_s += 3.0
    source.scan()
    (tmp_path / "m" / "traffic.json").write_text('{"canary_share": 0.5}')
    assert source.scan()["m"].traffic.canary_share == 0.5


@pytest.mark.parametrize("stamped_s", [0, 10**9, 10**10])
def test_a_folder_that_changed_a_moment_ago_is_read_again_whatever_its_stamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamped_s: int
) -> None:
    """As on a file system whose clock is another machine's and ticks every two seconds."""
    coarse = Marks(1, 2, 3, stamped_s * 10**9, stamped_s * 10**9)
    monkeypatch.setattr(source_module, "marks_of", lambda _: coarse)
    clock = Clock()
    source = RepositorySource(tmp_path, clock=clock)
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    source.scan()
    clock.now_s += 1.9
    builders.bare_version(tmp_path, "m", 2, builders.identity())
    assert source.scan()["m"].versions == (1, 2)
    clock.now_s += 3.0
    settled = source.scan()["m"]
    assert source.scan()["m"] is settled


def test_what_could_not_be_read_for_a_moment_is_read_again_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    clock = Clock()
    source = RepositorySource(tmp_path, clock=clock)
    scandir = os.scandir

    def failing(path: Path | int) -> object:
        if isinstance(path, int):
            raise OSError(24, "Too many open files")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        assert source.scan() == {}
    (tmp_path / "m" / "model.toml").write_text("keep_versions = 2")
    with monkeypatch.context() as patch:
        source.scan()
        clock.now_s += 3.0
        patch.setattr(os, "scandir", failing)
        (tmp_path / "m" / "model.toml").write_text("keep_versions = 3")
        assert "Too many open files" in source.scan()["m"].problem
    clock.now_s += 3.0
    assert source.scan()["m"].problem == ""
    assert source.scan()["m"].overrides.values == {"keep_versions": 3}


def test_a_model_whose_file_system_is_away_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a mount's server ended (ENOTCONN), or an NFS handle is stale: the root can be listed, the model not."""
    for model in ("m", "other"):
        builders.bare_version(tmp_path, model, 1, builders.identity())
    source = RepositorySource(tmp_path)
    source.scan()
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name = entry.name
            self.is_dir, self.is_symlink = entry.is_dir, entry.is_symlink
            self._entry = entry

        def stat(self) -> os.stat_result:
            if self.name == "m":
                raise OSError(107, "Transport endpoint is not connected")
            return self._entry.stat()

    @contextmanager
    def listing(path: Path) -> Iterator[list[Entry]]:
        with scandir(path) as entries:
            yield [Entry(entry) for entry in entries]

    def away(path: Path | int) -> object:
        if isinstance(path, int):
            if Path(os.readlink(f"/proc/self/fd/{path}")).name == "m":
                raise OSError(107, "Transport endpoint is not connected")
            return scandir(path)
        return listing(path) if path == tmp_path else scandir(path)

    monkeypatch.setattr(os, "scandir", away)
    found = source.scan()
    assert found["m"].versions == (1,)
    assert found["m"].problem == "model 'm': its folder cannot be read: Transport endpoint is not connected"
    assert found["other"].problem == ""


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("model.toml", "keep_version = 1", "m/model.toml: expected one of max_batch_size, "),
        ("model.toml", "x", "m/model.toml: expected TOML"),
        ("model.toml", "x = " + "[" * 9999, "m/model.toml: expected TOML"),
        ("labels.json", "{", "m/labels.json: expected JSON"),
        ("traffic.json", "{", "m/traffic.json: expected JSON"),
        ("labels.json", '{"stable": 0}', "m/labels.json: expected an object of label to positive integer"),
        ("labels.json", "[" * 99999, ""),
    ],
)
def test_a_typing_error_is_told_and_what_was_said_before_holds(
    tmp_path: Path, file: str, content: str, problem: str
) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    builders.bare_version(tmp_path, "other", 1, builders.identity())
    (tmp_path / "m" / "labels.json").write_text('{"stable": 1}')
    (tmp_path / "m" / "model.toml").write_text("keep_versions = 3")
    source = RepositorySource(tmp_path)
    before = source.scan()["m"]
    (tmp_path / "m" / file).write_text(content)
    builders.bare_version(tmp_path, "m", 2, builders.identity())
    after = source.scan()

    assert after["other"].problem == ""
    assert after["m"].problem.startswith(problem)
    assert after["m"].problem
    assert after["m"].versions == (1, 2)
    assert (after["m"].labels, after["m"].overrides) == (before.labels, before.overrides)
    (tmp_path / "m" / "labels.json").write_text('{"stable": 2}')
    (tmp_path / "m" / "model.toml").unlink()
    (tmp_path / "m" / "traffic.json").unlink(missing_ok=True)
    assert source.scan()["m"] == ModelSource((1, 2), {"stable": 2})


def test_labels_behind_a_link_that_leaves_are_not_read(tmp_path: Path) -> None:
    builders.bare_version(tmp_path / "repository", "m", 1, builders.identity())
    (tmp_path / "secret.json").write_text(json.dumps({"stable": 1}))
    (tmp_path / "repository" / "m" / "labels.json").symlink_to(tmp_path / "secret.json")
    source = RepositorySource(tmp_path / "repository").scan()["m"]

    assert (source.labels, source.versions) == ({}, (1,))
    assert source.problem.startswith("link 'm/labels.json' leads to '")
    assert "outside of the repository" in source.problem


def test_a_model_folder_that_cannot_be_listed_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    builders.bare_version(tmp_path, "other", 1, builders.identity())
    source = RepositorySource(tmp_path)
    source.scan()
    scandir = os.scandir

    def failing(path: Path | int) -> object:
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if Path(where).name == "m":
            raise OSError(5, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    sources = source.scan()
    assert sources["other"].versions == (1,)
    assert sources["m"].versions == (1,)
    assert sources["m"].problem == "model 'm': its folder cannot be read: Input/output error"


def test_a_model_that_is_removed_is_no_longer_there(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.identity())
    source = RepositorySource(tmp_path)
    source.scan()
    (path.folder / "model.onnx").unlink()
    path.folder.rmdir()

    assert source.scan() == {}
    (tmp_path / "m").rmdir()
    assert source.scan() == {}


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RepositorySource(tmp_path / "gone").scan()


def test_a_versions_stamp_changes_with_its_files(tmp_path: Path) -> None:
    path = builders.bare_version(tmp_path, "m", 1, builders.identity())
    source = RepositorySource(tmp_path)
    os.utime(path.folder / "model.onnx", ns=(LONG_AGO_NS, LONG_AGO_NS))
    stamp = source.version_stamp("m", 1)

    assert source.version_stamp("m", 1) == stamp
    (path.folder / "model.onnx").write_bytes(b"more")
    assert source.version_stamp("m", 1) != stamp
    assert set(source.version_stamp("m", 2)) == {0}


def test_what_a_dead_publisher_left_is_removed_and_what_a_living_one_fills_is_not(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, b"")
    left = tmp_path / "m" / ".staging-dead"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    with publishing(tmp_path, "m") as aside:
        for folder in (left, aside):
            os.utime(folder, (0, 0))
        RepositorySource(tmp_path).remove_leftovers()
        assert not left.exists()
        assert aside.exists()
    assert list(RepositorySource(tmp_path).scan()) == ["m"]


def test_a_model_whose_folder_another_took_the_place_of_goes_on(tmp_path: Path) -> None:
    """A volume of one model that is unmounted leaves an empty folder, another one, behind."""
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    source = RepositorySource(tmp_path)
    source.scan()
    (tmp_path / "m").rename(tmp_path / ".aside")
    (tmp_path / "m").mkdir()
    found = source.scan()["m"]
    assert found.versions == (1,)
    assert "another folder, without a version, is in its place" in found.problem
    assert source.notes == (found.problem,)
    (tmp_path / "m").rmdir()
    (tmp_path / ".aside").rename(tmp_path / "m")
    assert source.scan()["m"].problem == ""
    assert not source.notes


def test_a_model_without_a_version_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret" / "1").mkdir(parents=True)
    scandir = os.scandir

    def failing(path: Path | int) -> object:
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if Path(where).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    source = RepositorySource(tmp_path)
    for _ in range(3):
        assert source.scan() == {}
    cure = f"let user {os.geteuid()} read it (chmod u+rX)"
    assert source.notes == (f"model 'secret': its folder cannot be read: Permission denied; {cure}",)
    assert caplog.text.count("model 'secret'") == 1


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("model.onnx", "NAME/1/model.onnx"),
        ("m/model.onnx", "m/1/model.onnx"),
        ("m/v1/model.onnx", "m/1/model.onnx"),
        ("m/version-03/model.onnx", "m/3/model.onnx"),
        ("m/latest/model.onnx", "m/1/model.onnx"),
        ("m/0/model.onnx", "m/1/model.onnx"),
    ],
)
def test_a_model_in_the_wrong_place_is_named_with_a_command_that_cures_it(
    tmp_path: Path, found: str, wanted: str
) -> None:
    (tmp_path / found).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / found).write_bytes(b"model")
    source = RepositorySource(tmp_path)
    assert source.scan() == {}
    (note,) = source.notes
    text, _, command = note.rpartition(": ")
    assert text == f"'{found}' is not served: expected it at '{wanted}'"
    subprocess.run(["/bin/sh", "-c", command.replace("NAME", "n")], check=True)
    name = wanted.replace("NAME", "n")
    assert (tmp_path / name).read_bytes() == b"model"
    assert list(source.scan()) == [name.split("/")[0]]
    assert source.notes == ()


def test_a_misplaced_model_beside_versions_gets_the_next_number(tmp_path: Path) -> None:
    builders.bare_version(tmp_path, "m", 1, builders.identity())
    (tmp_path / "m" / "v1").mkdir()
    (tmp_path / "m" / "v1" / "model.onnx").write_bytes(b"model")
    source = RepositorySource(tmp_path)
    source.scan()
    assert "expected it at 'm/2/model.onnx'" in source.notes[0]


@pytest.mark.parametrize(("name", "meant"), [("odd name", "odd-name"), ("größe", "gr-e"), ("two\nlines", "two-lines")])
def test_a_model_whose_folder_has_no_model_name_is_named_with_a_command_that_cures_it(
    tmp_path: Path, name: str, meant: str
) -> None:
    (tmp_path / name / "2").mkdir(parents=True)
    (tmp_path / name / "2" / "model.onnx").write_bytes(b"model")
    (tmp_path / "notes of mine").mkdir()
    source = RepositorySource(tmp_path)
    assert source.scan() == {}
    (note,) = source.notes
    assert note.isprintable()
    subprocess.run(["bash", "-c", note.rpartition("'-': ")[2]], check=True)
    assert source.scan()[meant].versions == (2,)
    assert source.notes == ()
