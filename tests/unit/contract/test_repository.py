"""The repository: names, versions, atomic publishing, checksums."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
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
    checksums,
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


def rewritten(sums: dict[str, str], line: str) -> bytes:
    return "".join(
        line.format(digest=digest, capital=digest.upper(), name=name) for name, digest in sums.items()
    ).encode()


ALIKE = {
    "as it was": lambda sums: rewritten(sums, "{digest}  {name}\n"),
    "find -exec": lambda sums: rewritten(sums, "{digest}  ./{name}\n"),
    "binary": lambda sums: rewritten(sums, "{digest} *{name}\n"),
    "capitals": lambda sums: rewritten(sums, "{capital}  {name}\n"),
    "another system's ends of lines": lambda sums: rewritten(sums, "{digest}  {name}\r\n"),
    "another system's mark": lambda sums: b"\xef\xbb\xbf" + rewritten(sums, "{digest}  {name}\n"),
    "empty lines, remarks": lambda sums: b"# ours\n\n" + rewritten(sums, "{digest}  {name}\n\n"),
    "no end": lambda sums: rewritten(sums, "{digest}  {name}\n").rstrip(),
    "its own line": lambda sums: rewritten({**sums, CHECKSUMS_FILE: "0" * 64}, "{digest}  {name}\n"),
    "tagged": lambda sums: rewritten(sums, "SHA256 ({name}) = {digest}\n"),
    "twice": lambda sums: 2 * rewritten(sums, "{digest}  {name}\n"),
}


@pytest.mark.parametrize("written", ALIKE.values(), ids=ALIKE.keys())
def test_checksums_hold_however_they_are_written(tmp_path: Path, written: Callable[[dict[str, str]], bytes]) -> None:
    folder = published(tmp_path, extra=b"1").folder
    (folder / CHECKSUMS_FILE).write_bytes(written(checksums(folder)))
    verify_checksums(folder)
    (folder / "extra").write_bytes(b"2")
    with pytest.raises(ChecksumError, match="file 'extra': expected sha256"):
        verify_checksums(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("MD5 (model.onnx) = 00", "line 3: expected '<sha256>  <file>'"),
        ("\x1b[2J", r"got '\\x1b\[2J'"),
        (f"{'0' * 64}  extra", "line 3: another line says otherwise of 'extra'"),
        (f"{'0' * 64}  /etc/passwd", "file '/etc/passwd': expected sha256 0+, got none: it is missing"),
        (f"{'0' * 64}  ../2/model.onnx", "file '../2/model.onnx': expected sha256 0+, got none: it is missing"),
    ],
)
def test_checksums_that_say_something_else_are_refused(tmp_path: Path, line: str, problem: str) -> None:
    folder = published(tmp_path, extra=b"1").folder
    with (folder / CHECKSUMS_FILE).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ChecksumError, match=problem):
        verify_checksums(folder)


STRANGE = ["two\nlines", "back\\slash", "a\u2028b", "carriage\rreturn", "Gewichte ä", os.fsdecode(b"latin-\xe9")]


@pytest.mark.parametrize("name", STRANGE)
def test_files_of_any_name_have_checksums_as_sha256sum_writes_them(tmp_path: Path, name: str) -> None:
    folder = published(tmp_path, **{name: b"1"}).folder
    written = subprocess.run(["sha256sum", name], cwd=folder, capture_output=True, check=True).stdout
    assert written in (folder / CHECKSUMS_FILE).read_bytes().splitlines(keepends=True) or b"\r" in written
    verify_checksums(folder)
    (folder / name).write_bytes(b"2")
    with pytest.raises(ChecksumError) as caught:
        verify_checksums(folder)
    assert str(caught.value).isprintable()


LITTER = [
    *(".DS_Store", "._model.onnx", ".nfs0001", ".model.onnx.swp", "model.onnx~", "Thumbs.db", ".git/HEAD"),
    *("lost+found/x", ".rsync-partial/model.onnx", "@eaDir/x"),
]


@pytest.mark.parametrize("name", LITTER)
def test_what_others_leave_in_a_folder_is_no_file_of_the_version(tmp_path: Path, name: str) -> None:
    folder = published(tmp_path, extra=b"1").folder
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"litter")
    (folder / ".#model.onnx").symlink_to("me@machine.1:2")
    os.mkfifo(folder / ".pipe")
    verify_checksums(folder)
    (folder / "another").write_bytes(b"")
    with pytest.raises(ChecksumError, match="file 'another': expected sha256 none: it is not in SHA256SUMS"):
        verify_checksums(folder)


def test_litter_that_was_published_is_a_file_like_any_other(tmp_path: Path) -> None:
    folder = published(tmp_path, **{".gitattributes": b"1"}).folder
    verify_checksums(folder)
    (folder / ".gitattributes").write_bytes(b"2")
    with pytest.raises(ChecksumError, match=r"file '\.gitattributes'"):
        verify_checksums(folder)


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


def test_leftovers_that_cannot_be_removed_are_not_told_as_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that is mounted to be read only."""
    left = tmp_path / "m" / ".staging-x"
    left.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        assert remove_leftovers(tmp_path, older_than_s=1.0, now_s=time.time() + 9.0) == []
    assert remove_leftovers(tmp_path, older_than_s=1.0, now_s=time.time() + 9.0) == [left]
