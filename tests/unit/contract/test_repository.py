"""The repository: names, versions, atomic publishing, checksums."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.repository import (
    CHECKSUMS_FILE,
    MODEL_FILE,
    ChecksumError,
    VersionPath,
    check_model_name,
    is_model_name,
    models,
    publish,
    publishing,
    read_checksums,
    remove_leftovers,
    verify_checksums,
    version_path,
    versions,
)


def published(root: Path, model: str = "m", content: bytes = b"onnx", **others: bytes) -> VersionPath:
    with publishing(root, model) as aside:
        (aside / MODEL_FILE).write_bytes(content)
        for name, data in others.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_bytes(data)
        return publish(root, model, aside)


@given(st.text(max_size=140) | st.from_regex(r"[A-Za-z0-9._/-]{1,130}", fullmatch=True))
def test_model_name_is_one_harmless_path_component(name: str) -> None:
    if is_model_name(name):
        assert Path("root", name).parent == Path("root")
        assert name.isascii()
        assert name not in (".", "..")
        assert len(name) <= 128
    else:
        with pytest.raises(ValueError, match="model name: expected"):
            check_model_name(name)


@pytest.mark.parametrize("name", ["lenet", "a", "A.b-c_d", "0", "x" * 128])
def test_allowed_names(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a\n", "a\0", "é", "x" * 129, "a%2e"])
def test_names_that_are_not_allowed(name: str) -> None:
    assert not is_model_name(name)


def test_versions_are_positive_integers_without_leading_zeros(tmp_path: Path) -> None:
    for name in ("1", "2", "10", "0", "01", "-1", "1.0", "a", "1e3", "٣", "9" * 19):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "3").write_text("no folder")
    assert versions(tmp_path, "m") == [1, 2, 10]
    assert versions(tmp_path, "absent") == []


def test_models_are_folders_with_an_allowed_name(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    assert models(tmp_path) == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        models(tmp_path / "absent")


def test_published_version_is_whole_and_the_next_one(tmp_path: Path) -> None:
    first = published(tmp_path, extra=b"1")
    second = published(tmp_path)
    assert (first.version, second.version) == (1, 2)
    assert first.folder == version_path(tmp_path, "m", 1).folder
    assert {path.name for path in first.folder.iterdir()} == {MODEL_FILE, "extra", CHECKSUMS_FILE}
    verify_checksums(first.folder)
    assert sorted(os.listdir(tmp_path / "m")) == ["1", "2"]


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = published(tmp_path, extra=b"1").folder
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS_FILE], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(read_checksums(folder)) == {MODEL_FILE, "extra"}


def test_next_version_is_above_the_highest_whatever_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m" / "7").mkdir(parents=True)
    assert published(tmp_path).version == 8


def test_folder_without_a_model_is_not_published(tmp_path: Path) -> None:
    with publishing(tmp_path, "m") as aside, pytest.raises(ValueError, match=r"expected model\.onnx"):
        publish(tmp_path, "m", aside)
    assert list(tmp_path.iterdir()) == []


def test_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with publishing(tmp_path, "m") as aside:
            (aside / MODEL_FILE).write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_link_among_the_files_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "repository"
    with publishing(root, "m") as aside:
        (aside / MODEL_FILE).symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match=r"'model.onnx': expected no symbolic link"):
            publish(root, "m", aside)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["../m", "/m", "", "a/b"])
def test_publishing_under_a_bad_name_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="model name"), publishing(tmp_path / "root", name):
        pass
    assert list(tmp_path.iterdir()) == []


_RACE = """
import sys
from pathlib import Path
from fitserve_contract.repository import publish, publishing
root, process = Path(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for turn in range(10):
    with publishing(root, "m") as aside:
        (aside / "model.onnx").write_text(f"{process} {turn}")
        print(publish(root, "m", aside).version, flush=True)
"""


def test_processes_that_race_get_versions_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RACE, str(tmp_path)]
    racers = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    printed = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    numbers = [int(version) for versions_of_one in printed for version in versions_of_one]
    assert sorted(numbers) == list(range(1, 41))
    assert versions(tmp_path, "m") == list(range(1, 41))
    contents = {(tmp_path / "m" / str(version) / MODEL_FILE).read_text() for version in range(1, 41)}
    assert len(contents) == 40
    for version in range(1, 41):
        verify_checksums(tmp_path / "m" / str(version))


_CRASH = """
import os, sys
from pathlib import Path
from fitserve_contract.repository import publish, publishing
root = Path(sys.argv[1])
WATCHED = ("open", "os.mkdir", "os.rename", "os.chmod", "os.scandir", "os.rmdir", "os.remove")
step = 0
while True:
    step += 1
    child = os.fork()
    if child == 0:
        left = step
        def crash(event, arguments):
            global left
            if event in WATCHED:
                left -= 1
                if left == 0:
                    os._exit(9)
        sys.addaudithook(crash)
        with publishing(root, "m") as aside:
            for name in ("model.onnx", "manifest.json"):
                with open(aside / name, "wb") as file:
                    file.write(b"x" * 10000)
            publish(root, "m", aside)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(step)
        break
"""


def test_death_at_any_step_leaves_whole_versions_and_removable_leftovers(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _CRASH, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert versions(tmp_path, "m")
    for version in versions(tmp_path, "m"):
        verify_checksums(tmp_path / "m" / str(version))
    leftovers = [name for name in os.listdir(tmp_path / "m") if not name.isdigit()]
    assert leftovers
    removed = remove_leftovers(tmp_path, older_than_s=0, now_s=time.time() + 1)
    assert {path.name for path in removed} == set(leftovers)
    assert all(name.isdigit() for name in os.listdir(tmp_path / "m"))


def test_leftovers_that_may_still_be_written_stay(tmp_path: Path) -> None:
    with publishing(tmp_path, "m") as aside:
        now_s = aside.stat().st_mtime
        assert remove_leftovers(tmp_path, older_than_s=60, now_s=now_s + 6000) == []
        assert aside.is_dir()
        (left := aside.with_name(".staging-left")).mkdir()
        now_s = left.stat().st_mtime
        assert remove_leftovers(tmp_path, older_than_s=60, now_s=now_s + 59) == []
        assert remove_leftovers(tmp_path, older_than_s=60, now_s=now_s + 61) == [left]


@pytest.mark.parametrize("change", ["flip", "truncate", "remove", "add", "link", "add below"])
def test_changed_version_is_refused_and_the_file_named(tmp_path: Path, change: str) -> None:
    folder = published(tmp_path, content=b"0123456789", extra=b"1").folder
    name = MODEL_FILE
    if change == "flip":
        (folder / name).write_bytes(b"0123456788")
    elif change == "truncate":
        (folder / name).write_bytes(b"012345678")
    elif change == "remove":
        (folder / name).unlink()
    elif change == "link":
        (folder / name).rename(tmp_path / "moved")
        (folder / name).symlink_to(tmp_path / "moved")
    elif change == "add":
        name = "surplus"
        (folder / name).write_bytes(b"")
    else:
        name = "sub/surplus"
        (folder / "sub").mkdir()
        (folder / name).write_bytes(b"")
    with pytest.raises(ChecksumError, match=f"(file|link) '{name}'"):
        verify_checksums(folder)


@pytest.mark.parametrize("line", ["nonsense", "ab  model.onnx", "G" * 64 + "  model.onnx"])
def test_checksum_file_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    folder = published(tmp_path).folder
    (folder / CHECKSUMS_FILE).write_text(line + "\n")
    with pytest.raises(ChecksumError, match="SHA256SUMS line 1"):
        verify_checksums(folder)


def test_version_without_checksums_is_told_apart(tmp_path: Path) -> None:
    folder = published(tmp_path).folder
    (folder / CHECKSUMS_FILE).unlink()
    with pytest.raises(FileNotFoundError):
        verify_checksums(folder)
